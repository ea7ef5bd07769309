//! The plugin that stands for a component: the framework's forms over one node and over all, told by one [`Guest`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use framework::args::decode;
use framework::{
    Code, CycleState, FilterPlugin, NodeIndex, NodeInfo, NodeSet, Plugin, PluginError, PodInfo,
    ScorePlugin, Sign, Snapshot, Status,
};
use framework::{Normalize as FrameworkNormalize, Verdicts as FrameworkVerdicts};
use serde_json::Value;

use crate::args::{WasmPluginArgs, interned};
use crate::bindings::{Normalize, PodFields, Points, RejectionCode, Scope, Verdicts};
use crate::component;
use crate::convert;
use crate::guest::{Described, Guest, GuestError, Recipe};
use crate::host::shortened;

/// Makes the plugin `name` of the component that its arguments name.
///
/// # Errors
/// For arguments that do not decode or make no sense, a file that is no component or none of this interface, and a component that fails or refuses its
/// arguments; with field and value.
pub fn new(name: &str, args: Option<&Value>) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = interned(name);
    let args: WasmPluginArgs = decode(plugin, args)?;
    let invalid = |problems| PluginError::Invalid { plugin, problems };
    let problems = args.problems();
    if !problems.is_empty() {
        return Err(invalid(problems));
    }
    let (engine, component) =
        component::load(&args.path).map_err(|problem| invalid(vec![problem]))?;
    let recipe = Recipe {
        plugin,
        engine,
        component,
        arguments: args.args.to_string(),
        memory_limit: usize::try_from(args.memory_limit_bytes).unwrap_or(usize::MAX),
        fuel: args.fuel_per_call.unsigned_abs(),
    };
    let guest = Guest::start(recipe).map_err(|error| {
        let field = match &error {
            GuestError::Failed { .. } => format!("args: Invalid value: {}: ", args.args),
            GuestError::Memory { .. } => {
                format!(
                    "memoryLimitBytes: Invalid value: {}: ",
                    args.memory_limit_bytes
                )
            }
            GuestError::Fuel { .. } => {
                format!("fuelPerCall: Invalid value: {}: ", args.fuel_per_call)
            }
            _ => format!("path: Invalid value: {:?}: ", args.path.display()),
        };
        invalid(vec![format!("{field}{error}")])
    })?;
    let described = guest.described();
    if described.points == Points::empty() {
        let why = "its WASM component has a say at no point";
        return Err(invalid(vec![crate::args::invalid_path(&args.path, why)]));
    }
    Ok(Arc::new(WasmPlugin {
        name: plugin,
        described,
        sign: sign(&described),
        guest: Mutex::new(guest),
        failed: Mutex::new(None),
    }))
}

fn sign(described: &Described) -> Option<Sign> {
    match described.scope {
        Scope::Cluster => None,
        Scope::Node => convert::fragments(described.pod_fields).map(Sign::node),
    }
}

/// A form over all nodes that failed. It can only say that there is no such form, and the runtime goes on with the form for one node, which then gives the reason.
struct Failure {
    thread: ThreadId,
    pod: Arc<str>,
    error: GuestError,
}

struct WasmPlugin {
    name: &'static str,
    described: Described,
    sign: Option<Sign>,
    guest: Mutex<Guest>,
    failed: Mutex<Option<Failure>>,
}

impl WasmPlugin {
    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, pod: &PodInfo, error: GuestError) {
        *self.failed() = Some(Failure {
            thread: thread::current().id(),
            pod: Arc::clone(&pod.uid),
            error,
        });
    }

    /// What the form over all nodes met, if it was just asked for this pod.
    fn take_failure(&self, pod: &PodInfo) -> Option<GuestError> {
        let ours = |failure: &mut Failure| {
            failure.thread == thread::current().id() && failure.pod == pod.uid
        };
        self.failed().take_if(ours).map(|failure| failure.error)
    }

    fn status(&self, error: &GuestError) -> Status {
        Status::new(Code::Error, error.to_string()).by(self.name)
    }
}

fn nodes<'a>(snapshot: &'a Snapshot, set: &NodeSet) -> Vec<(NodeIndex, &'a Arc<NodeInfo>)> {
    set.iter()
        .filter_map(|index| Some((index, snapshot.node(index)?)))
        .collect()
}

fn rejection(verdicts: &Verdicts, verdict: u16) -> Status {
    let rejection = &verdicts.rejections[usize::from(verdict) - 1];
    let reason = shortened(&rejection.reason);
    match rejection.code {
        RejectionCode::Unschedulable => Status::unschedulable(reason),
        RejectionCode::Unresolvable => Status::unresolvable(reason),
    }
}

impl Plugin for WasmPlugin {
    fn name(&self) -> &'static str {
        self.name
    }

    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        self.sign
    }

    fn sign_more(&self, pod: &PodInfo, _snapshot: &Snapshot, key: &mut Vec<u8>) {
        if self.described.pod_fields.contains(PodFields::ANNOTATIONS) {
            serde_json::to_writer(key, &pod.pod.metadata.annotations)
                .expect("texts serialise into memory");
        }
    }

    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        let has = self.described.points.contains(Points::FILTER);
        has.then_some(self as &dyn FilterPlugin)
    }

    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        let has = self.described.points.contains(Points::SCORE);
        has.then_some(self as &dyn ScorePlugin)
    }
}

impl FilterPlugin for WasmPlugin {
    fn filter(&self, _state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        if let Some(error) = self.take_failure(pod) {
            return self.status(&error);
        }
        match self.guest().filter_one(pod, node) {
            Ok(answer) => match answer.verdicts[0] {
                0 => Status::success(),
                verdict => rejection(&answer, verdict),
            },
            Err(error) => self.status(&error),
        }
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut FrameworkVerdicts,
    ) -> bool {
        let nodes = nodes(snapshot, verdicts.feasible());
        if nodes.is_empty() {
            return true;
        }
        let answer = match self.guest().filter(pod, &nodes) {
            Ok(answer) => answer,
            Err(error) => {
                self.fail(pod, error);
                return false;
            }
        };
        let mut known = vec![None; answer.rejections.len()];
        for ((index, _), &verdict) in nodes.iter().zip(&answer.verdicts) {
            if verdict == 0 {
                continue;
            }
            let id = known[usize::from(verdict) - 1]
                .get_or_insert_with(|| verdicts.rejection(rejection(&answer, verdict)));
            verdicts.reject(*index, *id);
        }
        true
    }
}

impl ScorePlugin for WasmPlugin {
    fn score(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let failed = self.take_failure(pod);
        let score = match failed {
            Some(error) => Err(error),
            None => self.guest().score_one(pod, node),
        };
        score.map_err(|error| self.status(&error))
    }

    fn score_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        set: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let nodes = nodes(snapshot, set);
        if nodes.is_empty() {
            return true;
        }
        match self.guest().score(pod, &nodes) {
            Ok(found) => {
                for ((index, _), score) in nodes.iter().zip(found) {
                    scores[*index as usize] = score;
                }
                true
            }
            Err(error) => {
                self.fail(pod, error);
                false
            }
        }
    }

    fn normalize(&self) -> FrameworkNormalize {
        match self.described.normalize {
            Normalize::Already => FrameworkNormalize::Already,
            Normalize::ByMax => FrameworkNormalize::ByMax { reverse: false },
            Normalize::ByMaxReversed => FrameworkNormalize::ByMax { reverse: true },
        }
    }
}
