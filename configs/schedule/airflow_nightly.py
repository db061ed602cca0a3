"""An Airflow DAG that calls `nightmill nightly` in a pod, every half hour of the night.

Needs Airflow 3 and apache-airflow-providers-cncf-kubernetes 10 or newer.
"""

from datetime import timedelta

import pendulum
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.sdk import DAG
from kubernetes.client import models as k8s

with DAG(
    dag_id="nightmill_nightly",
    schedule="*/30 2-8 * * *",
    start_date=pendulum.datetime(2026, 11, 1, tz="Europe/Berlin"),
    # Nightmill itself catches up, in order.
    catchup=False,
    max_active_runs=1,
):
    KubernetesPodOperator(
        task_id="nightly",
        name="nightmill-nightly",
        namespace="nightmill",
        image="nightmill:0.1.0",
        cmds=["nightmill"],
        arguments=["nightly", "/etc/nightmill/nightly.yaml", "--json"],
        secrets=[Secret("env", "NIGHTMILL_WEBHOOK", "nightmill", "webhook")],
        container_resources=k8s.V1ResourceRequirements(
            requests={"cpu": "8", "memory": "64Gi"},
            limits={"memory": "64Gi", "nvidia.com/gpu": "1"},
        ),
        volumes=[
            k8s.V1Volume(name="config", config_map=k8s.V1ConfigMapVolumeSource(name="nightmill")),
            k8s.V1Volume(
                name="data",
                persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(
                    claim_name="nightmill"
                ),
            ),
        ],
        volume_mounts=[
            k8s.V1VolumeMount(name="config", mount_path="/etc/nightmill", read_only=True),
            k8s.V1VolumeMount(name="data", mount_path="/srv/nightmill/data"),
        ],
        on_finish_action="delete_pod",
        retries=0,
        execution_timeout=timedelta(hours=12),
    )
