"""The worker side: runs on training machines, without Airflow. The only package that imports torch."""
