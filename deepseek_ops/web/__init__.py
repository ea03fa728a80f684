"""HTTP doors: FastAPI applications that the command line serves by themselves and the Airflow plugin mounts.

They know nothing of Airflow. Who may ask is the caller's to say: every application takes the dependency that
authorises a request as an argument, and has no route without it. FastAPI is imported where an application is built.
"""
