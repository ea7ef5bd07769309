//! Who expands a claim. Pure.

use component_base::events::EventType;
use component_base::informer::ObjectKey;
use component_helpers::persistent_volume::{
    PRE_RESIZE_CAPACITY, annotation, claim_phase, claim_ref, has_annotation, requested_storage,
    storage_of,
};
use component_helpers::quantity::{Amount, amount};
use controller_runtime::Action;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use crate::persistentvolume_binder::migration::{csi_driver, in_tree_plugin};

/// On claims: whose resizer shall expand it.
const STORAGE_RESIZER: &str = "volume.kubernetes.io/storage-resizer";
/// The reason of every event here.
pub const EXTERNAL_EXPANDING: &str = "ExternalExpanding";

/// The volume is not, or not yet, the claim's; a retry helps when it gets so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("persistent Volume is not bound to PVC being updated : {claim}")]
pub struct NotBound {
    /// The claim.
    pub claim: ObjectKey,
}

/// What to do about a claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expansion {
    /// Tells who is waited for.
    pub event: Option<Action>,
    /// Names the resizer.
    pub resizer: Option<Action>,
}

/// The storage a claim has.
fn has(claim: &PersistentVolumeClaim) -> Amount {
    let status = claim.status.as_ref();
    let capacity = status.and_then(|status| status.capacity.as_ref());
    storage_of(capacity).map(amount).unwrap_or_default()
}

/// Whether an update of a claim says that it wants more, or has got more.
pub fn has_grown(old: &PersistentVolumeClaim, new: &PersistentVolumeClaim) -> bool {
    requested_storage(new) > requested_storage(old) || has(new) > has(old)
}

/// Whether the claim has a volume that could grow.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim_phase(claim) == "Bound"
}

/// Who expands the claim's volume, if it has to grow.
///
/// # Errors
/// When the volume is not the claim's.
pub fn sync(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<Expansion, NotBound> {
    let key = ObjectKey::of(claim);
    let is_its = claim_ref(volume).is_some_and(|reference| {
        reference.namespace == claim.metadata.namespace && reference.uid == claim.metadata.uid
    });
    if !is_its {
        return Err(NotBound { claim: key });
    }
    let resizing = has_annotation(&volume.metadata, PRE_RESIZE_CAPACITY);
    if requested_storage(claim) <= has(claim) && !resizing {
        return Ok(Expansion::default());
    }
    let tell =
        |message: String| Action::event(claim, EventType::Normal, EXTERNAL_EXPANDING, message);
    let migrated = in_tree_plugin(volume).and_then(|plugin| Some((plugin, csi_driver(plugin)?)));
    let Some((plugin, driver)) = migrated else {
        let message = "waiting for an external controller to expand this PVC";
        return Ok(Expansion {
            event: Some(tell(message.to_owned())),
            resizer: None,
        });
    };
    let message = format!(
        "CSI migration enabled for {plugin}; waiting for external resizer to expand the pvc"
    );
    let named = annotation(&claim.metadata, STORAGE_RESIZER) == Some(driver);
    let patch = json!({ "metadata": {
        "resourceVersion": claim.metadata.resource_version,
        "annotations": { STORAGE_RESIZER: driver },
    }});
    let name_it =
        || Action::status_patch::<PersistentVolumeClaim>(&key.namespace, &key.name, patch);
    Ok(Expansion {
        event: Some(tell(message)),
        resizer: (!named).then(name_it),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{AWSElasticBlockStoreVolumeSource, CSIPersistentVolumeSource};
    use serde_json::from_value;

    fn claim(wants: &str, has: &str) -> PersistentVolumeClaim {
        from_value(json!({
            "metadata": { "namespace": "ns", "name": "c", "uid": "u", "resourceVersion": "7" },
            "spec": { "resources": { "requests": { "storage": wants } } },
            "status": { "phase": "Bound", "capacity": { "storage": has } },
        }))
        .unwrap()
    }

    fn volume(uid: &str) -> PersistentVolume {
        from_value(json!({
            "metadata": { "name": "v" },
            "spec": { "claimRef": { "namespace": "ns", "name": "c", "uid": uid } },
        }))
        .unwrap()
    }

    #[test]
    fn who_expands() {
        let message = |expansion: &Expansion| match &expansion.event {
            Some(Action::Event { message, .. }) => message.clone(),
            _ => String::new(),
        };
        let mut csi = volume("u");
        csi.spec.as_mut().unwrap().csi = Some(CSIPersistentVolumeSource::default());
        assert_eq!(
            sync(&claim("1Gi", "1024Mi"), &csi),
            Ok(Expansion::default())
        );
        assert_eq!(sync(&claim("1Gi", "2Gi"), &csi), Ok(Expansion::default()));
        let waits = sync(&claim("2Gi", "1Gi"), &csi).unwrap();
        assert_eq!(
            message(&waits),
            "waiting for an external controller to expand this PVC"
        );
        assert_eq!(waits.resizer, None);
        // The file system has yet to grow.
        let mut resizing = csi.clone();
        resizing.metadata.annotations =
            Some([(PRE_RESIZE_CAPACITY.to_owned(), "1Gi".to_owned())].into());
        assert!(
            sync(&claim("1Gi", "1Gi"), &resizing)
                .unwrap()
                .event
                .is_some()
        );

        let mut migrated = volume("u");
        migrated.spec.as_mut().unwrap().aws_elastic_block_store =
            Some(AWSElasticBlockStoreVolumeSource::default());
        let named = sync(&claim("2Gi", "1Gi"), &migrated).unwrap();
        assert!(message(&named).contains("CSI migration enabled for kubernetes.io/aws-ebs"));
        let Some(Action::Patch { target, patch, .. }) = named.resizer else {
            panic!("no patch");
        };
        assert_eq!(target.subresource, "status");
        assert_eq!(
            patch["metadata"]["annotations"][STORAGE_RESIZER],
            "ebs.csi.aws.com"
        );
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let mut again = claim("2Gi", "1Gi");
        again.metadata.annotations =
            Some([(STORAGE_RESIZER.to_owned(), "ebs.csi.aws.com".to_owned())].into());
        assert_eq!(sync(&again, &migrated).unwrap().resizer, None);
    }

    #[test]
    fn only_the_claims_own_volume() {
        sync(&claim("2Gi", "1Gi"), &volume("other")).unwrap_err();
        sync(&claim("2Gi", "1Gi"), &PersistentVolume::default()).unwrap_err();
    }

    #[test]
    fn which_updates_matter() {
        let (small, large) = (claim("1Gi", "1Gi"), claim("2Gi", "1Gi"));
        assert!(has_grown(&small, &large) && has_grown(&large, &claim("2Gi", "2Gi")));
        assert!(!has_grown(&large, &small) && !has_grown(&small, &small));
    }
}
