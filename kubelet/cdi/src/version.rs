//! Which version of the format a file must name at least for what it uses; pure. Upstream: specs-go/version.go.

use crate::edits::ContainerEdits;

/// Those there are, oldest first. The first two are known and too old for every file. Upstream: `vEarliest`.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];

/// Where `version` stands among all; `None`: there is no such version.
pub(crate) fn position(version: &str) -> Option<usize> {
    let bare = version.strip_prefix('v').unwrap_or(version);
    VERSIONS.iter().position(|known| *known == bare)
}

/// What of a file decides.
pub(crate) struct Used<'a> {
    pub(crate) kind: &'a str,
    /// The file or a device has annotations.
    pub(crate) annotated: bool,
    pub(crate) devices: Vec<&'a str>,
    pub(crate) edits: Vec<&'a ContainerEdits>,
}

/// The version that the features of a file came with. Upstream: `MinimumRequiredVersion`.
pub(crate) fn required(used: &Used<'_>) -> &'static str {
    let any = |uses: fn(&ContainerEdits) -> bool| used.edits.iter().any(|edits| uses(edits));
    let new_rdt = |edits: &ContainerEdits| {
        let rdt = edits.intel_rdt.as_ref();
        rdt.is_some_and(|rdt| rdt.schemata.is_some() || rdt.enable_monitoring)
    };
    if any(new_rdt) || any(|edits| !edits.net_devices.is_empty()) {
        return "1.1.0";
    }
    if any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
        return "0.7.0";
    }
    let dotted_class = used.kind.split_once('/');
    let dotted_class = dotted_class.is_some_and(|(_, class)| class.contains('.'));
    if used.annotated || dotted_class {
        return "0.6.0";
    }
    let digit = |name: &str| name.starts_with(|c: char| c.is_ascii_digit());
    let host_path = |edits: &ContainerEdits| {
        let mut nodes = edits.device_nodes.iter();
        nodes.any(|node| !node.host_path.is_empty())
    };
    if used.devices.iter().any(|name| digit(name)) || any(host_path) {
        return "0.5.0";
    }
    if any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty())) {
        return "0.4.0";
    }
    "0.3.0"
}
