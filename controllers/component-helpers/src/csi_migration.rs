//! The volume plugins that were once in Kubernetes' own tree and are CSI drivers now: names, handles, topology.
//!
//! Owns translation towards CSI only. Upstream: k8s.io/csi-translation-lib, v1.36.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, Volume, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::CSINode;

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";
const BETA_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
const BETA_REGION: &str = "failure-domain.beta.kubernetes.io/region";
/// Between the zones of a label.
pub const LABEL_MULTI_ZONE_DELIMITER: &str = "__";
/// On a CSINode: the plugins that its kubelet serves by CSI, with commas between.
pub const MIGRATED_PLUGINS_ANNOTATION: &str = "storage.alpha.kubernetes.io/migrated-plugins";

/// A plugin that has a CSI driver in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InTreePlugin {
    /// `awsElasticBlockStore`.
    AwsEbs,
    /// `gcePersistentDisk`.
    GcePd,
    /// `cinder`.
    Cinder,
    /// `azureDisk`.
    AzureDisk,
    /// `azureFile`.
    AzureFile,
    /// `vsphereVolume`.
    VSphere,
    /// `portworxVolume`.
    Portworx,
}

use InTreePlugin::{AwsEbs, AzureDisk, AzureFile, Cinder, GcePd, Portworx, VSphere};

impl InTreePlugin {
    /// All of them.
    pub const ALL: [InTreePlugin; 7] = [
        AwsEbs, GcePd, Cinder, AzureDisk, AzureFile, VSphere, Portworx,
    ];

    /// The name as classes and annotations carry it.
    pub const fn name(self) -> &'static str {
        match self {
            AwsEbs => "kubernetes.io/aws-ebs",
            GcePd => "kubernetes.io/gce-pd",
            Cinder => "kubernetes.io/cinder",
            AzureDisk => "kubernetes.io/azure-disk",
            AzureFile => "kubernetes.io/azure-file",
            VSphere => "kubernetes.io/vsphere-volume",
            Portworx => "kubernetes.io/portworx-volume",
        }
    }

    /// The CSI driver in its place.
    pub const fn driver(self) -> &'static str {
        match self {
            AwsEbs => "ebs.csi.aws.com",
            GcePd => "pd.csi.storage.gke.io",
            Cinder => "cinder.csi.openstack.org",
            AzureDisk => "disk.csi.azure.com",
            AzureFile => "file.csi.azure.com",
            VSphere => "csi.vsphere.vmware.com",
            Portworx => "pxd.portworx.com",
        }
    }

    /// The plugin of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plugin| plugin.name() == name)
    }

    /// The plugin of a pod's inline volume.
    pub fn of_inline(volume: &Volume) -> Option<Self> {
        let has = |plugin: &InTreePlugin| match plugin {
            AwsEbs => volume.aws_elastic_block_store.is_some(),
            GcePd => volume.gce_persistent_disk.is_some(),
            Cinder => volume.cinder.is_some(),
            AzureDisk => volume.azure_disk.is_some(),
            AzureFile => volume.azure_file.is_some(),
            VSphere => volume.vsphere_volume.is_some(),
            Portworx => volume.portworx_volume.is_some(),
        };
        Self::ALL.into_iter().find(has)
    }

    /// The plugin of a volume.
    pub fn of_volume(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let has = |plugin: &InTreePlugin| match plugin {
            AwsEbs => spec.aws_elastic_block_store.is_some(),
            GcePd => spec.gce_persistent_disk.is_some(),
            Cinder => spec.cinder.is_some(),
            AzureDisk => spec.azure_disk.is_some(),
            AzureFile => spec.azure_file.is_some(),
            VSphere => spec.vsphere_volume.is_some(),
            Portworx => spec.portworx_volume.is_some(),
        };
        Self::ALL.into_iter().find(has)
    }

    /// Does the scheduler treat it as its CSI driver? (Upstream's lists leave the two without attach limits or topology out.)
    pub const fn is_scheduled_as_csi(self) -> bool {
        !matches!(self, AzureFile | VSphere)
    }

    /// Does the node's kubelet serve it by CSI?
    pub fn is_migrated_on(self, node: Option<&CSINode>) -> bool {
        let annotations = node.and_then(|node| node.metadata.annotations.as_ref());
        let list = annotations.and_then(|a| a.get(MIGRATED_PLUGINS_ANNOTATION));
        list.is_some_and(|list| list.split(',').any(|name| name == self.name()))
    }

    /// The CSI volume handle of an inline volume; `None` where it has none of this kind, or one that does not translate.
    pub fn inline_handle(self, volume: &Volume) -> Option<String> {
        match self {
            AwsEbs => ebs_volume_id(&volume.aws_elastic_block_store.as_ref()?.volume_id),
            GcePd => {
                let disk = &volume.gce_persistent_disk.as_ref()?.pd_name;
                Some(zonal_disk(UNSPECIFIED, disk))
            }
            Cinder => Some(volume.cinder.as_ref()?.volume_id.clone()),
            AzureDisk => {
                let disk = volume.azure_disk.as_ref()?;
                is_managed(disk.kind.as_deref()).then(|| disk.disk_uri.clone())
            }
            VSphere => Some(volume.vsphere_volume.as_ref()?.volume_path.clone()),
            Portworx => Some(volume.portworx_volume.as_ref()?.volume_id.clone()),
            // Nothing is counted or attached by this handle.
            AzureFile => None,
        }
    }

    /// The CSI volume handle of a volume; `None` where it has none of this kind, or one that does not translate.
    pub fn handle(self, volume: &PersistentVolume) -> Option<String> {
        let spec = volume.spec.as_ref()?;
        match self {
            AwsEbs => ebs_volume_id(&spec.aws_elastic_block_store.as_ref()?.volume_id),
            GcePd => gce_handle(volume, &spec.gce_persistent_disk.as_ref()?.pd_name),
            Cinder => Some(spec.cinder.as_ref()?.volume_id.clone()),
            AzureDisk => {
                let disk = spec.azure_disk.as_ref()?;
                is_managed(disk.kind.as_deref()).then(|| disk.disk_uri.clone())
            }
            VSphere => Some(spec.vsphere_volume.as_ref()?.volume_path.clone()),
            Portworx => Some(spec.portworx_volume.as_ref()?.volume_id.clone()),
            AzureFile => None,
        }
    }

    /// The volume's node affinity in the driver's own topology keys; zone labels stand in where there is no affinity.
    pub fn node_affinity(self, volume: &PersistentVolume) -> Option<VolumeNodeAffinity> {
        let affinity = volume.spec.as_ref()?.node_affinity.clone();
        let key = match self {
            AwsEbs => "topology.ebs.csi.aws.com/zone",
            GcePd => "topology.gke.io/zone",
            Cinder => "topology.cinder.csi.openstack.org/zone",
            AzureDisk | AzureFile | Portworx => return affinity,
            VSphere => {
                let (zone, region) = topology_labels(volume);
                let affinity = translate(volume, affinity, zone, "topology.csi.vmware.com/zone");
                return translate(volume, affinity, region, "topology.csi.vmware.com/region");
            }
        };
        let (zone, region) = topology_labels(volume);
        let mut affinity = translate(volume, affinity, zone, key);
        if region == BETA_REGION {
            rename(&mut affinity, BETA_REGION, REGION);
        }
        affinity
    }
}

const UNSPECIFIED: &str = "UNSPECIFIED";

fn zonal_disk(zone: &str, disk: &str) -> String {
    format!("projects/{UNSPECIFIED}/zones/{zone}/disks/{disk}")
}

fn is_managed(kind: Option<&str>) -> bool {
    kind.is_none_or(|kind| kind.eq_ignore_ascii_case("managed"))
}

/// `aws://zone/vol-0123` or a bare id.
fn ebs_volume_id(id: &str) -> Option<String> {
    let Some(rest) = id.strip_prefix("aws://") else {
        return Some(id.to_owned());
    };
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let id = path.trim_matches('/');
    let tail = id.strip_prefix("vol-")?;
    (!tail.contains('/')).then(|| id.to_owned())
}

fn gce_handle(volume: &PersistentVolume, disk: &str) -> Option<String> {
    let label = |key: &str| {
        let value = volume.metadata.labels.as_ref()?.get(key);
        value.map(String::as_str).filter(|value| !value.is_empty())
    };
    let Some(zones) = label(BETA_ZONE).or_else(|| label(ZONE)) else {
        return Some(zonal_disk(UNSPECIFIED, disk));
    };
    let zones: Vec<&str> = zones.split(LABEL_MULTI_ZONE_DELIMITER).collect();
    if let [zone] = zones[..] {
        return Some(zonal_disk(zone, disk));
    }
    // `locale-region-zone`
    let region = |zone: &&str| match zone.split('-').collect::<Vec<_>>()[..] {
        [locale, region, _] => Some(format!("{locale}-{region}")),
        _ => None,
    };
    let regions: Option<BTreeSet<String>> = zones.iter().map(region).collect();
    let regions = regions?;
    let only = regions.first().filter(|_| regions.len() == 1)?;
    Some(format!(
        "projects/{UNSPECIFIED}/regions/{only}/disks/{disk}"
    ))
}

fn terms(affinity: &Option<VolumeNodeAffinity>) -> &[NodeSelectorTerm] {
    let required = affinity.as_ref().and_then(|a| a.required.as_ref());
    required.map_or(&[], |required| &required.node_selector_terms)
}

fn uses(affinity: &Option<VolumeNodeAffinity>, key: &str) -> bool {
    let mut expressions = terms(affinity)
        .iter()
        .flat_map(|term| term.match_expressions.iter().flatten());
    expressions.any(|expression| expression.key == key)
}

/// The zone and region labels a volume speaks of: of its affinity, else of its labels, the old ones only where the new are absent.
fn topology_labels(volume: &PersistentVolume) -> (&'static str, &'static str) {
    let affinity = &volume.spec.as_ref().and_then(|s| s.node_affinity.clone());
    let labelled = |key: &str| {
        let labels = volume.metadata.labels.as_ref();
        labels.is_some_and(|labels| labels.contains_key(key))
    };
    let (new, beta) = ((ZONE, REGION), (BETA_ZONE, BETA_REGION));
    if uses(affinity, ZONE) {
        new
    } else if uses(affinity, BETA_ZONE) || (labelled(BETA_ZONE) && !labelled(ZONE)) {
        beta
    } else {
        new
    }
}

fn rename(affinity: &mut Option<VolumeNodeAffinity>, old: &str, new: &str) {
    let required = affinity.as_mut().and_then(|a| a.required.as_mut());
    let terms = required
        .into_iter()
        .flat_map(|r| &mut r.node_selector_terms);
    for expression in terms.flat_map(|term| term.match_expressions.iter_mut().flatten()) {
        if expression.key == old {
            new.clone_into(&mut expression.key);
        }
    }
}

/// `label` becomes `key`; where the affinity has no values for it, those of the volume's label are added to every term.
fn translate(
    volume: &PersistentVolume,
    mut affinity: Option<VolumeNodeAffinity>,
    label: &str,
    key: &str,
) -> Option<VolumeNodeAffinity> {
    let has_values = terms(&affinity)
        .iter()
        .flat_map(|term| term.match_expressions.iter().flatten())
        .any(|e| e.key == label && e.values.as_ref().is_some_and(|v| !v.is_empty()));
    if has_values {
        rename(&mut affinity, label, key);
        return affinity;
    }
    let Some(value) = volume.metadata.labels.as_ref().and_then(|l| l.get(label)) else {
        return affinity;
    };
    let zones: BTreeSet<&str> = value
        .split(LABEL_MULTI_ZONE_DELIMITER)
        .map(str::trim)
        .filter(|zone| !zone.is_empty())
        .collect();
    if zones.is_empty() {
        return affinity;
    }
    let required = affinity
        .get_or_insert_default()
        .required
        .get_or_insert_default();
    if required.node_selector_terms.is_empty() {
        required
            .node_selector_terms
            .push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        let expressions = term.match_expressions.get_or_insert_default();
        expressions.push(NodeSelectorRequirement {
            key: key.to_owned(),
            operator: "In".to_owned(),
            values: Some(zones.iter().map(|zone| (*zone).to_owned()).collect()),
        });
    }
    affinity
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::serde_json;

    fn volume(value: serde_json::Value) -> PersistentVolume {
        serde_json::from_value(value).expect("a volume")
    }

    #[test]
    fn handles() {
        let ebs = |id: &str| {
            let pv =
                volume(serde_json::json!({"spec": {"awsElasticBlockStore": {"volumeID": id}}}));
            InTreePlugin::of_volume(&pv).and_then(|plugin| plugin.handle(&pv))
        };
        assert_eq!(ebs("vol-1").as_deref(), Some("vol-1"));
        assert_eq!(ebs("aws://us-east-1a/vol-1").as_deref(), Some("vol-1"));
        assert_eq!(ebs("aws:///disk-1"), None);
        let gce = |zones: &str| {
            let pv = volume(serde_json::json!({
                "metadata": {"labels": {ZONE: zones}}, "spec": {"gcePersistentDisk": {"pdName": "d"}}}));
            GcePd.handle(&pv)
        };
        let is = |handle: Option<String>, expect: &str| assert_eq!(handle.as_deref(), Some(expect));
        is(gce(""), "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d");
        is(
            gce("eu-west1-a"),
            "projects/UNSPECIFIED/zones/eu-west1-a/disks/d",
        );
        is(
            gce("eu-west1-a__eu-west1-b"),
            "projects/UNSPECIFIED/regions/eu-west1/disks/d",
        );
        assert_eq!(gce("eu-west1-a__eu-west2-b"), None);
    }

    #[test]
    fn zones_become_the_drivers_topology() {
        let of = |volume: &PersistentVolume| {
            let affinity = AwsEbs.node_affinity(volume);
            let terms = terms(&affinity).iter();
            terms
                .flat_map(|term| term.match_expressions.iter().flatten())
                .map(|e| {
                    format!(
                        "{}={}",
                        e.key,
                        e.values.clone().unwrap_or_default().join("+")
                    )
                })
                .collect::<Vec<_>>()
        };
        let labelled = volume(serde_json::json!({
            "metadata": {"labels": {BETA_ZONE: "a__b"}}, "spec": {"awsElasticBlockStore": {"volumeID": "v"}}}));
        assert_eq!(of(&labelled), ["topology.ebs.csi.aws.com/zone=a+b"]);
        let expression = |key: &str, value: &str| serde_json::json!({"key": key, "operator": "In", "values": [value]});
        let affine = volume(serde_json::json!({"spec": {
            "awsElasticBlockStore": {"volumeID": "v"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression(BETA_ZONE, "a"), expression(BETA_REGION, "r")]}]}},
        }}));
        assert_eq!(
            of(&affine),
            [
                "topology.ebs.csi.aws.com/zone=a",
                "topology.kubernetes.io/region=r"
            ]
        );
        let plain =
            volume(serde_json::json!({"spec": {"awsElasticBlockStore": {"volumeID": "v"}}}));
        assert!(of(&plain).is_empty());
    }

    #[test]
    fn a_node_says_what_it_serves_by_csi() {
        let node: CSINode = serde_json::from_value(serde_json::json!({
            "metadata": {"annotations": {MIGRATED_PLUGINS_ANNOTATION: "kubernetes.io/aws-ebs,kubernetes.io/cinder"}},
            "spec": {"drivers": []}}))
        .expect("a CSINode");
        assert!(Cinder.is_migrated_on(Some(&node)) && !GcePd.is_migrated_on(Some(&node)));
        assert!(!Cinder.is_migrated_on(None));
    }
}
