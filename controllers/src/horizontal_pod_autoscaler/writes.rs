//! Writes scales and statuses.

use component_base::events::EventType;
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, ObjectKey};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricStatus};
use serde_json::json;

use super::controller::{Autoscalers, Scale, SyncError, internal, scale_target};
use super::sync::{ABLE_TO_SCALE, note_zero, set_condition, set_status};

/// So often a scale that somebody else wrote meanwhile is tried. Upstream: `retry.DefaultRetry`.
const SCALE_TRIES: u32 = 5;

impl Autoscalers {
    /// Writes the scale, tells of it, and remembers it.
    pub(super) async fn rescale(
        &self,
        key: &ObjectKey,
        shared: &HorizontalPodAutoscaler,
        (autoscaler, scale): (&mut HorizontalPodAutoscaler, &mut Scale),
        (current, desired): (i32, i32),
        reason: &str,
        statuses: &[MetricStatus],
    ) -> Result<(), ApiError> {
        let now = self.clock.now();
        if let Err(error) = self.write_scale(key, autoscaler, scale, desired).await {
            let message = format!("New size: {desired}; reason: {reason}; error: {error}");
            self.warn(autoscaler, "FailedRescale", &message);
            let text = format!("the HPA controller was unable to update the target scale: {error}");
            let status = autoscaler.status.get_or_insert_default();
            set_condition(
                status,
                ABLE_TO_SCALE,
                false,
                "FailedUpdateScale",
                &text,
                now,
            );
            let before = status.desired_replicas;
            set_status(
                autoscaler,
                (current, before),
                statuses.to_vec(),
                false,
                &self.settings,
                now,
            );
            self.update_status_and_log(shared, autoscaler).await;
            return Err(error);
        }
        let text = format!("the HPA controller was able to update the target scale to {desired}");
        let status = autoscaler.status.get_or_insert_default();
        set_condition(status, ABLE_TO_SCALE, true, "SucceededRescale", &text, now);
        let message = format!("New size: {desired}; reason: {reason}");
        self.tell(autoscaler, EventType::Normal, "SuccessfulRescale", &message);
        tracing::info!(hpa = %key, current, desired, reason, "Successfully rescaled");
        if let Some(memory) = self.memory().get_mut(key) {
            let behavior = autoscaler.spec.behavior.as_ref();
            memory
                .history
                .scaled(behavior, current, desired, self.clock.monotonic());
        }
        note_zero(autoscaler, (current, desired), &self.settings, now);
        Ok(())
    }

    async fn write_scale(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &mut Scale,
        desired: i32,
    ) -> Result<(), ApiError> {
        let name = &autoscaler.spec.scale_target_ref.name;
        let target = scale_target(&scale.resource, &key.namespace, name);
        let mut tries = 1;
        loop {
            scale.object["spec"]["replicas"] = json!(desired);
            let body = scale.object.clone();
            match self
                .executor
                .send(Verb::Update, &target, Vec::new(), body)
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if error.is_conflict() && tries < SCALE_TRIES => tries += 1,
                Err(error) => return Err(error),
            }
            // One that cannot be read is written as it was, and says why not.
            if let Ok(latest) = self.read_scale(&scale.resource, &key.namespace, name).await {
                scale.object = latest;
            }
        }
    }

    /// Writes the status if it says something new.
    pub(super) async fn update_status(
        &self,
        old: &HorizontalPodAutoscaler,
        new: &HorizontalPodAutoscaler,
    ) -> Result<(), SyncError> {
        if old.status == new.status {
            return Ok(());
        }
        match self.executor.update_status(new).await {
            Ok(answer) => {
                let version = answer
                    .metadata
                    .resource_version
                    .as_deref()
                    .unwrap_or_default();
                if let Some(memory) = self.memory().get_mut(&ObjectKey::of(new)) {
                    memory.written = version.parse().ok();
                }
                Ok(())
            }
            Err(error) => {
                self.warn(new, "FailedUpdateStatus", &error.to_string());
                let name = new.metadata.name.as_deref().unwrap_or_default();
                Err(internal(format!(
                    "failed to update status for {name}: {error}"
                )))
            }
        }
    }

    pub(super) async fn update_status_and_log(
        &self,
        old: &HorizontalPodAutoscaler,
        new: &HorizontalPodAutoscaler,
    ) {
        if let Err(error) = self.update_status(old, new).await {
            tracing::warn!(%error, "An autoscaler's status was not written");
        }
    }
}
