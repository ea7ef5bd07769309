//! What the driver decides, without a disk: is a request well-formed, what is it to make, does it fit, which page is next. Pure.
//!
//! Codes are those of the specification (spec.md of container-storage-interface/spec); words are our own.

use std::collections::BTreeMap;

use csi_spec::csi::v1 as csi;
use tonic::Status;

use crate::state::{Access, Phase, Source, State, Volume};

/// The topology key of the node that has the volume. Upstream: csi-driver-host-path, `nodeserver.go`.
pub const TOPOLOGY_KEY: &str = "topology.hostpath.csi/node";
/// The parameter that names the kind of storage whose capacity is counted. Upstream: `hostpath.go`.
pub const KIND: &str = "kind";
/// What the kubelet says of an inline volume, and of no other.
pub const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// An inline volume has no size in its pod. Upstream: `nodeserver.go`.
pub const EPHEMERAL_BYTES: i64 = 100 << 20;
/// The size of a volume whose request names none.
pub const DEFAULT_BYTES: i64 = 1 << 30;
/// The specification's bound of an ID.
const MAX_ID_BYTES: usize = 128;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Config {
    pub driver_name: String,
    pub node_id: String,
    /// Every volume is an inline one, whether the kubelet says so or not.
    pub ephemeral: bool,
    /// What a node takes, 0 for no limit.
    pub max_volumes_per_node: i64,
    /// Bytes by kind; empty where capacity is not counted.
    pub capacity: BTreeMap<String, i64>,
    pub enable_attach: bool,
    pub check_volume_lifecycle: bool,
    pub max_volume_size: i64,
    pub enable_topology: bool,
    pub enable_volume_expansion: bool,
    pub disable_controller_expansion: bool,
    pub disable_node_expansion: bool,
    pub enable_controller_modify_volume: bool,
    /// Empty for all.
    pub accepted_mutable_parameters: Vec<String>,
    pub enable_list_snapshots: bool,
    /// Of an expansion on the node.
    pub max_volume_size_node: i64,
    /// How many volumes can be attached, 0 for no limit, -1 for a limit that the node makes up.
    pub attach_limit: i64,
}

impl Config {
    /// Where this driver's volumes are, as it says so to others.
    pub fn topology(&self) -> Option<csi::Topology> {
        self.enable_topology.then(|| csi::Topology {
            segments: [(TOPOLOGY_KEY.to_owned(), self.node_id.clone())].into(),
        })
    }
}

/// A call names what it is about.
///
/// # Errors
/// The field is empty.
pub fn required<'a>(value: &'a str, field: &str) -> Result<&'a str, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    Ok(value)
}

/// The bytes of a request: what it asks for, or the most it allows, or `otherwise`; within the limit.
///
/// # Errors
/// The range is no range.
pub fn size(range: Option<&csi::CapacityRange>, otherwise: i64) -> Result<i64, Status> {
    let (wanted, limit) = bounds(range)?;
    Ok(match (wanted, limit) {
        (0, 0) => otherwise,
        (0, limit) => otherwise.min(limit),
        (wanted, _) => wanted,
    })
}

fn bounds(range: Option<&csi::CapacityRange>) -> Result<(i64, i64), Status> {
    let (wanted, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
    if wanted < 0 || limit < 0 {
        return Err(Status::invalid_argument("capacity_range is negative"));
    }
    if limit > 0 && wanted > limit {
        return Err(Status::invalid_argument(format!(
            "capacity_range: {wanted} bytes are required, at most {limit} allowed"
        )));
    }
    Ok((wanted, limit))
}

/// How the volume is to be used, by all its capabilities.
///
/// # Errors
/// There is none, one has no kind, or they are of two kinds.
pub fn access(capabilities: &[csi::VolumeCapability]) -> Result<Access, Status> {
    use csi::volume_capability::AccessType;
    let mut found = None;
    for capability in capabilities {
        let access = match capability.access_type {
            Some(AccessType::Mount(_)) => Access::Mount,
            Some(AccessType::Block(_)) => Access::Block,
            None => {
                return Err(Status::invalid_argument(
                    "volume_capability: neither mount nor block",
                ));
            }
        };
        if *found.get_or_insert(access) != access {
            return Err(Status::invalid_argument(
                "volume_capabilities: both mount and block",
            ));
        }
    }
    found.ok_or_else(|| Status::invalid_argument("volume_capabilities are missing"))
}

/// What a volume is filled from, as the request says.
///
/// # Errors
/// It says that there is something, and not what.
pub fn source(source: Option<&csi::VolumeContentSource>) -> Result<Option<Source>, Status> {
    use csi::volume_content_source::Type;
    let Some(source) = source else {
        return Ok(None);
    };
    let (source, id) = match &source.r#type {
        Some(Type::Snapshot(snapshot)) => {
            let id = snapshot.snapshot_id.clone();
            (Source::Snapshot(id.clone()), id)
        }
        Some(Type::Volume(volume)) => (
            Source::Volume(volume.volume_id.clone()),
            volume.volume_id.clone(),
        ),
        None => {
            return Err(Status::invalid_argument(
                "volume_content_source: neither a snapshot nor a volume",
            ));
        }
    };
    required(&id, "volume_content_source: the ID")?;
    Ok(Some(source))
}

/// What creating a volume comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Creation {
    /// It is there already.
    Existing(Volume),
    /// It is to be made, and filled from its source.
    New(Volume),
}

/// Decides on a CreateVolume. `id` is the ID of a new one.
///
/// # Errors
/// What the caller is told: nothing is to be made.
pub fn create_volume(
    config: &Config,
    state: &State,
    request: &csi::CreateVolumeRequest,
    id: &str,
) -> Result<Creation, Status> {
    required(&request.name, "name")?;
    let access = access(&request.volume_capabilities)?;
    let (_, limit) = bounds(request.capacity_range.as_ref())?;
    mutable_parameters(config, &request.mutable_parameters)?;
    let source = source(request.volume_content_source.as_ref())?;
    let parameters: BTreeMap<_, _> = request.parameters.clone().into_iter().collect();
    if let Some(existing) = state.volume_by_name(&request.name) {
        match existing.phase {
            Phase::Ready => {}
            // Nobody else works on this name: what was begun and could not be ended is begun anew.
            Phase::Creating => return Ok(Creation::New(existing.clone())),
            Phase::Deleting => return Err(busy(&request.name)),
        }
        let (wanted, _) = bounds(request.capacity_range.as_ref())?;
        let fits = existing.size_bytes >= wanted && (limit == 0 || existing.size_bytes <= limit);
        let same = existing.access == access
            && existing.source == source
            && existing.parameters == parameters;
        if !fits || !same {
            return Err(Status::already_exists(format!(
                "volume {:?} exists with {} bytes and differs in {}",
                request.name,
                existing.size_bytes,
                if fits { "what it is" } else { "size" }
            )));
        }
        return Ok(Creation::Existing(existing.clone()));
    }
    reachable(config, request.accessibility_requirements.as_ref())?;
    let least = source_bytes(state, source.as_ref(), access)?;
    let size_bytes = size(
        request.capacity_range.as_ref(),
        least.unwrap_or(DEFAULT_BYTES),
    )?;
    if let Some(least) = least
        && size_bytes < least
    {
        return Err(Status::invalid_argument(format!(
            "the source has {least} bytes, more than the {size_bytes} of the new volume"
        )));
    }
    let kind = kind(
        config,
        state,
        parameters.get(KIND).map(String::as_str),
        size_bytes,
    )?;
    Ok(Creation::New(Volume {
        id: id.to_owned(),
        name: request.name.clone(),
        size_bytes,
        access,
        phase: Phase::Creating,
        ephemeral: false,
        kind,
        source,
        parameters,
        mutable_parameters: request.mutable_parameters.clone().into_iter().collect(),
        attached: None,
        staged: Vec::new(),
        published: BTreeMap::new(),
    }))
}

/// Decides on the volume that a publish of an inline volume makes.
///
/// # Errors
/// What the caller is told: nothing is to be made.
pub fn create_ephemeral(
    config: &Config,
    state: &State,
    request: &csi::NodePublishVolumeRequest,
) -> Result<Volume, Status> {
    let id = path_component(&request.volume_id)?;
    let kind = request.volume_context.get(KIND).map(String::as_str);
    Ok(Volume {
        id: id.to_owned(),
        name: format!("ephemeral-{id}"),
        size_bytes: EPHEMERAL_BYTES,
        access: Access::Mount,
        phase: Phase::Creating,
        ephemeral: true,
        kind: self::kind(config, state, kind, EPHEMERAL_BYTES)?,
        source: None,
        parameters: BTreeMap::new(),
        mutable_parameters: BTreeMap::new(),
        attached: None,
        staged: Vec::new(),
        published: BTreeMap::new(),
    })
}

/// An ID of somebody else's choice becomes a name in the driver's folder.
fn path_component(id: &str) -> Result<&str, Status> {
    let fits = id.len() <= MAX_ID_BYTES && !id.contains(['/', '\0']) && ![".", ".."].contains(&id);
    if fits {
        required(id, "volume_id")
    } else {
        Err(Status::invalid_argument(format!(
            "volume_id {id:?} is no name of a file"
        )))
    }
}

/// The bytes a new volume needs for its source; `None` without one.
fn source_bytes(
    state: &State,
    source: Option<&Source>,
    access: Access,
) -> Result<Option<i64>, Status> {
    let (what, id, found) = match source {
        None => return Ok(None),
        Some(Source::Snapshot(id)) => {
            let snapshot = state.snapshots.get(id);
            let found = snapshot.map(|found| (found.size_bytes, found.access, found.phase));
            ("snapshot", id, found)
        }
        Some(Source::Volume(id)) => {
            let volume = state.volumes.get(id);
            let found = volume.map(|found| (found.size_bytes, found.access, found.phase));
            ("volume", id, found)
        }
    };
    match found {
        Some((size_bytes, of, Phase::Ready)) if of == access => Ok(Some(size_bytes)),
        Some((_, of, Phase::Ready)) => Err(Status::invalid_argument(format!(
            "{what} {id} is for {of:?}, the new volume for {access:?}"
        ))),
        Some(_) => Err(busy(id)),
        None => Err(Status::not_found(format!("{what} {id} does not exist"))),
    }
}

/// The kind of storage a new volume is taken from.
fn kind(
    config: &Config,
    state: &State,
    wanted: Option<&str>,
    size_bytes: i64,
) -> Result<Option<String>, Status> {
    if size_bytes > config.max_volume_size {
        return Err(too_large(size_bytes, config.max_volume_size));
    }
    let fits = |kind: &str, total: i64| total.saturating_sub(state.allocated(kind)) >= size_bytes;
    match wanted {
        Some(kind) if config.capacity.is_empty() => Err(Status::invalid_argument(format!(
            "parameter {KIND} is {kind:?}, and no --capacity is given"
        ))),
        None if config.capacity.is_empty() => Ok(None),
        Some(wanted) => match config.capacity.get(wanted) {
            Some(total) if fits(wanted, *total) => Ok(Some(wanted.to_owned())),
            _ => Err(Status::resource_exhausted(format!(
                "{size_bytes} bytes exceed what is left of kind {wanted:?}"
            ))),
        },
        None => config
            .capacity
            .iter()
            .find(|(kind, total)| fits(kind, **total))
            .map(|(kind, _)| Some(kind.clone()))
            .ok_or_else(|| {
                Status::resource_exhausted(format!(
                    "{size_bytes} bytes exceed what is left of any kind"
                ))
            }),
    }
}

/// Whether a volume here is where it is wanted.
fn reachable(config: &Config, wanted: Option<&csi::TopologyRequirement>) -> Result<(), Status> {
    let (Some(here), Some(wanted)) = (config.topology(), wanted) else {
        return Ok(());
    };
    let all = if wanted.requisite.is_empty() {
        &wanted.preferred
    } else {
        &wanted.requisite
    };
    if all.is_empty() || all.contains(&here) {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "volumes are made on node {:?} only",
        config.node_id
    )))
}

/// The names are among those that can be changed.
///
/// # Errors
/// They are not, or nothing can be changed.
pub fn mutable_parameters<'a>(
    config: &Config,
    parameters: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Status> {
    let accepted = &config.accepted_mutable_parameters;
    let mut strange: Vec<&str> = parameters
        .into_iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| {
            let is_accepted = accepted.is_empty() || accepted.iter().any(|one| one == name);
            !config.enable_controller_modify_volume || !is_accepted
        })
        .collect();
    if strange.is_empty() {
        return Ok(());
    }
    strange.sort_unstable();
    Err(Status::invalid_argument(format!(
        "mutable_parameters {strange:?} cannot be changed"
    )))
}

/// What is left for new volumes, and the largest of them.
pub fn capacity(
    config: &Config,
    state: &State,
    request: &csi::GetCapacityRequest,
) -> csi::GetCapacityResponse {
    let elsewhere = match (config.topology(), &request.accessible_topology) {
        (Some(here), Some(wanted)) => *wanted != here,
        _ => false,
    };
    let available = if elsewhere {
        0
    } else if config.capacity.is_empty() {
        config.max_volume_size
    } else {
        let kind = request.parameters.get(KIND).map_or("", String::as_str);
        let total = config.capacity.get(kind).copied().unwrap_or(0);
        total.saturating_sub(state.allocated(kind)).max(0)
    };
    csi::GetCapacityResponse {
        available_capacity: available,
        maximum_volume_size: Some(available.min(config.max_volume_size)),
        minimum_volume_size: Some(0),
    }
}

/// A page of a list that is sorted by ID. A token names the last entry told, so that a page is right whatever came or went meanwhile.
///
/// # Errors
/// The token is none of ours, or the number is negative.
pub fn page<'a, T>(
    all: impl Iterator<Item = (&'a String, T)>,
    starting_token: &str,
    max_entries: i32,
) -> Result<(Vec<T>, String), Status> {
    const TOKEN: &str = "after:";
    let most = usize::try_from(max_entries)
        .map_err(|_| Status::invalid_argument("max_entries is negative"))?;
    let after = match starting_token {
        "" => "",
        token => token.strip_prefix(TOKEN).ok_or_else(|| {
            Status::aborted(format!("starting_token {token:?} is none of this driver's"))
        })?,
    };
    let mut rest = all.filter(|(id, _)| id.as_str() > after).peekable();
    let (mut entries, mut last) = (Vec::new(), String::new());
    while let Some((id, entry)) = rest.next() {
        entries.push(entry);
        if entries.len() == most && rest.peek().is_some() {
            last = format!("{TOKEN}{id}");
            break;
        }
    }
    Ok((entries, last))
}

/// Somebody works on it: come again.
pub fn busy(what: &str) -> Status {
    Status::aborted(format!("an operation on {what:?} is under way"))
}

/// More than the driver makes.
pub fn too_large(size_bytes: i64, most: i64) -> Status {
    Status::out_of_range(format!(
        "{size_bytes} bytes exceed the largest volume, {most}"
    ))
}

/// A number of bytes as Kubernetes writes it: `100`, `1.5Gi`, `2T`.
///
/// # Errors
/// It is no number of bytes, or more than 2^63.
pub fn quantity(text: &str) -> Result<i64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => return Err(format!("{text:?} has no unit of bytes that is known")),
    };
    match number.parse::<f64>() {
        Ok(number) if number * factor < 9.2e18 => Ok((number * factor).ceil() as i64),
        _ => Err(format!("{text:?} is not a number of bytes")),
    }
}

#[cfg(test)]
mod tests;
