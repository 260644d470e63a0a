"""What a user triggers or schedules: one Prefect flow per job."""
