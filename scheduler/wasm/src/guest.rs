//! [`Guest`]: an instance of a component, what it was told, and how it fails.
//!
//! An instance that traps, takes too much or answers nonsense is thrown away; the next call makes a new one, which is told all again. Nodes are told once and
//! again when they change: what an instance was told is held here, so that an unchanged node is known by its address.

use std::collections::HashMap;
use std::sync::Arc;

use framework::{NodeIndex, NodeInfo, PodInfo};
use wasmtime::{Engine, Store, Trap};

use crate::bindings::{
    Description, Node, NodeFields, Normalize, PodFields, Points, SchedulerPlugin,
    SchedulerPluginPre, Scope, Verdicts,
};
use crate::component::INTERFACE;
use crate::convert;
use crate::host::{Host, TooMuchMemory, shortened};

/// A node of no snapshot is told of here.
const TRIED_OUT: u32 = 0;
/// How many nodes one call tells of at most.
const NODES_A_CALL: usize = 1024;
/// How much of an answer is copied: the scores of a million nodes, with room.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// The largest raw score that can be multiplied by 100.
const MAX_RAW_SCORE: i64 = i64::MAX / framework::MAX_NODE_SCORE;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("its WASM component took more than {fuel} units of fuel (fuelPerCall) in {call}")]
    Fuel { call: &'static str, fuel: u64 },
    #[error(
        "its WASM component asked for {wanted} bytes of memory in {call}, more than {limit} (memoryLimitBytes)"
    )]
    Memory {
        call: &'static str,
        wanted: usize,
        limit: usize,
    },
    #[error("its WASM component trapped in {call}: {cause}")]
    Trap { call: &'static str, cause: String },
    #[error("its WASM component gave {found} {what} for {asked} nodes")]
    Length {
        what: &'static str,
        found: usize,
        asked: usize,
    },
    #[error("its WASM component gave the score {score}, which is not within 0..{most}")]
    Range { score: i64, most: i64 },
    #[error("its WASM component gave the verdict {verdict} with {rejections} rejections")]
    Verdict { verdict: u16, rejections: usize },
    #[error("its WASM component does not fit {interface}: {cause}")]
    Misfit {
        interface: &'static str,
        cause: String,
    },
    #[error("its WASM component failed in {call}: {text}")]
    Failed { call: &'static str, text: String },
}

/// What a component said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) points: Points,
    pub(crate) pod_fields: PodFields,
    pub(crate) node_fields: NodeFields,
    pub(crate) scope: Scope,
    pub(crate) normalize: Normalize,
}

impl From<Description> for Described {
    fn from(description: Description) -> Self {
        Described {
            points: description.points,
            pod_fields: description.pod_fields,
            node_fields: description.node_fields,
            scope: description.scope,
            normalize: description.normalize,
        }
    }
}

/// What an instance is made of.
pub(crate) struct Recipe {
    pub(crate) plugin: &'static str,
    pub(crate) engine: Engine,
    pub(crate) component: SchedulerPluginPre<Host>,
    pub(crate) arguments: String,
    pub(crate) memory_limit: usize,
    pub(crate) fuel: u64,
}

struct Instance {
    store: Store<Host>,
    calls: SchedulerPlugin,
    /// What each slot was told of.
    held: Vec<Option<Arc<NodeInfo>>>,
    /// The slot of each node in `held`.
    slots: HashMap<Arc<str>, u32>,
}

impl Instance {
    fn holds(&self, slot: u32, node: &NodeInfo) -> bool {
        let held = self.held.get(slot as usize).and_then(Option::as_ref);
        held.is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), node))
    }

    fn hold(&mut self, slot: u32, node: &Arc<NodeInfo>) {
        let at = slot as usize;
        if at >= self.held.len() {
            self.held.resize(at + 1, None);
        }
        let old = self.held[at].replace(Arc::clone(node));
        if let Some(old) = old.filter(|old| old.name() != node.name())
            && self.slots.get(old.name()) == Some(&slot)
        {
            self.slots.remove(old.name());
        }
        self.slots.insert(Arc::clone(node.name()), slot);
    }
}

/// See the module.
pub(crate) struct Guest {
    recipe: Recipe,
    described: Described,
    running: Option<Instance>,
}

impl Guest {
    /// Makes the first instance.
    ///
    /// # Errors
    /// The component fails already, or refuses its arguments.
    pub(crate) fn start(recipe: Recipe) -> Result<Self, GuestError> {
        let (instance, described) = made(&recipe)?;
        Ok(Guest {
            recipe,
            described,
            running: Some(instance),
        })
    }

    /// What the component said of itself.
    pub(crate) fn described(&self) -> Described {
        self.described
    }

    /// The scores of `nodes`, in their order.
    pub(crate) fn score(
        &mut self,
        pod: &PodInfo,
        nodes: &[(NodeIndex, &Arc<NodeInfo>)],
    ) -> Result<Vec<i64>, GuestError> {
        let slots = self.tell(nodes)?;
        self.score_slots(pod, &slots)
    }

    /// The score of a node that may be in no snapshot.
    pub(crate) fn score_one(&mut self, pod: &PodInfo, node: &NodeInfo) -> Result<i64, GuestError> {
        let slot = self.tell_one(node)?;
        let scores = self.score_slots(pod, &[slot])?;
        Ok(scores[0])
    }

    fn score_slots(&mut self, pod: &PodInfo, slots: &[u32]) -> Result<Vec<i64>, GuestError> {
        let pod = convert::pod(pod, self.described.pod_fields);
        let scores = self.call("score", |instance| {
            let plugin = instance.calls.gantry_scheduler_plugin();
            plugin.call_score(&mut instance.store, slots, &pod)
        })?;
        let most = match self.described.normalize {
            Normalize::Already => framework::MAX_NODE_SCORE,
            Normalize::ByMax | Normalize::ByMaxReversed => MAX_RAW_SCORE,
        };
        let (found, asked) = (scores.len(), slots.len());
        let wrong = match scores.iter().find(|score| !(0..=most).contains(*score)) {
            _ if found != asked => GuestError::Length {
                what: "scores",
                found,
                asked,
            },
            Some(&score) => GuestError::Range { score, most },
            None => return Ok(scores),
        };
        Err(self.throw_away(wrong))
    }

    /// The verdicts on `nodes`, in their order.
    pub(crate) fn filter(
        &mut self,
        pod: &PodInfo,
        nodes: &[(NodeIndex, &Arc<NodeInfo>)],
    ) -> Result<Verdicts, GuestError> {
        let slots = self.tell(nodes)?;
        self.filter_slots(pod, &slots)
    }

    /// The verdict on a node that may be in no snapshot.
    pub(crate) fn filter_one(
        &mut self,
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Result<Verdicts, GuestError> {
        let slot = self.tell_one(node)?;
        self.filter_slots(pod, &[slot])
    }

    fn filter_slots(&mut self, pod: &PodInfo, slots: &[u32]) -> Result<Verdicts, GuestError> {
        let pod = convert::pod(pod, self.described.pod_fields);
        let answer = self.call("filter", |instance| {
            let plugin = instance.calls.gantry_scheduler_plugin();
            plugin.call_filter(&mut instance.store, slots, &pod)
        })?;
        let (found, asked) = (answer.verdicts.len(), slots.len());
        let rejections = answer.rejections.len();
        let mut verdicts = answer.verdicts.iter();
        let wrong = match verdicts.find(|verdict| usize::from(**verdict) > rejections) {
            _ if found != asked => GuestError::Length {
                what: "verdicts",
                found,
                asked,
            },
            Some(&verdict) => GuestError::Verdict {
                verdict,
                rejections,
            },
            None => return Ok(answer),
        };
        Err(self.throw_away(wrong))
    }

    /// Tells of the nodes that changed; the slots of all.
    fn tell(&mut self, nodes: &[(NodeIndex, &Arc<NodeInfo>)]) -> Result<Vec<u32>, GuestError> {
        // Slot 0 is taken.
        let slots = nodes.iter().map(|(index, _)| index + 1).collect();
        let instance = self.instance()?;
        let changed: Vec<(u32, &Arc<NodeInfo>)> = nodes
            .iter()
            .map(|(index, node)| (index + 1, *node))
            .filter(|(slot, node)| !instance.holds(*slot, node))
            .collect();
        for changed in changed.chunks(NODES_A_CALL) {
            let fields = self.described.node_fields;
            let told: Vec<Node> = changed
                .iter()
                .map(|(slot, node)| convert::node(*slot, node, fields))
                .collect();
            self.update(&told)?;
            let instance = self.instance()?;
            for (slot, node) in changed {
                instance.hold(*slot, node);
            }
        }
        Ok(slots)
    }

    /// The slot of a node, which is told of unless it is one that was.
    fn tell_one(&mut self, node: &NodeInfo) -> Result<u32, GuestError> {
        let instance = self.instance()?;
        if let Some(&slot) = instance.slots.get(node.name())
            && instance.holds(slot, node)
        {
            return Ok(slot);
        }
        let told = convert::node(TRIED_OUT, node, self.described.node_fields);
        self.update(&[told])?;
        Ok(TRIED_OUT)
    }

    fn update(&mut self, nodes: &[Node]) -> Result<(), GuestError> {
        self.call("update-nodes", |instance| {
            let plugin = instance.calls.gantry_scheduler_plugin();
            let done = plugin.call_update_nodes(&mut instance.store, nodes);
            done.map(Ok)
        })
    }

    /// The instance, made anew if the last one was thrown away. It says of itself what the first one said: there is nothing else it could tell it by.
    fn instance(&mut self) -> Result<&mut Instance, GuestError> {
        let running = match self.running.take() {
            Some(running) => running,
            None => made(&self.recipe)?.0,
        };
        Ok(self.running.insert(running))
    }

    /// One call, with fuel of its own.
    fn call<T>(
        &mut self,
        call: &'static str,
        run: impl FnOnce(&mut Instance) -> wasmtime::Result<Result<T, String>>,
    ) -> Result<T, GuestError> {
        let (fuel, limit) = (self.recipe.fuel, self.recipe.memory_limit);
        match bounded(call, fuel, limit, self.instance()?, run) {
            Ok(Ok(answer)) => Ok(answer),
            // It is well and says that it cannot.
            Ok(Err(text)) => Err(failed(call, &text)),
            Err(error) => Err(self.throw_away(error)),
        }
    }

    fn throw_away(&mut self, error: GuestError) -> GuestError {
        self.running = None;
        tracing::warn!(
            plugin = self.recipe.plugin,
            %error,
            "A scheduler plugin failed; its instance is made anew"
        );
        error
    }
}

fn failed(call: &'static str, text: &str) -> GuestError {
    GuestError::Failed {
        call,
        text: shortened(text).to_owned(),
    }
}

fn bounded<T>(
    call: &'static str,
    fuel: u64,
    limit: usize,
    instance: &mut Instance,
    run: impl FnOnce(&mut Instance) -> wasmtime::Result<T>,
) -> Result<T, GuestError> {
    instance.store.data_mut().lines = 0;
    let done = || {
        instance.store.set_fuel(fuel)?;
        run(instance)
    };
    done().map_err(|error| classified(call, fuel, limit, &error))
}

fn classified(call: &'static str, fuel: u64, limit: usize, error: &wasmtime::Error) -> GuestError {
    if let Some(TooMuchMemory { wanted }) = error.downcast_ref() {
        let wanted = *wanted;
        return GuestError::Memory {
            call,
            wanted,
            limit,
        };
    }
    if error.downcast_ref() == Some(&Trap::OutOfFuel) {
        return GuestError::Fuel { call, fuel };
    }
    // The innermost cause: what is around it is a backtrace of many lines.
    let cause = shortened(&error.root_cause().to_string()).to_owned();
    GuestError::Trap { call, cause }
}

/// Why there is no instance: types that differ show only now.
fn unstarted(fuel: u64, limit: usize, error: &wasmtime::Error) -> GuestError {
    match classified("its start", fuel, limit, error) {
        GuestError::Trap { .. } if error.downcast_ref::<Trap>().is_none() => GuestError::Misfit {
            interface: INTERFACE,
            cause: shortened(&format!("{error:#}")).to_owned(),
        },
        other => other,
    }
}

/// A new instance, configured.
fn made(recipe: &Recipe) -> Result<(Instance, Described), GuestError> {
    let mut store = Store::new(
        &recipe.engine,
        Host::new(recipe.plugin, recipe.memory_limit),
    );
    store.limiter(|host| &mut host.bounds);
    store.set_hostcall_fuel(MAX_ANSWER_BYTES);
    let (fuel, limit) = (recipe.fuel, recipe.memory_limit);
    let mut instantiate = || {
        store.set_fuel(fuel)?;
        recipe.component.instantiate(&mut store)
    };
    let calls = instantiate().map_err(|error| unstarted(fuel, limit, &error))?;
    let mut instance = Instance {
        store,
        calls,
        held: Vec::new(),
        slots: HashMap::new(),
    };
    let described = bounded("configure", fuel, limit, &mut instance, |instance| {
        let plugin = instance.calls.gantry_scheduler_plugin();
        plugin.call_configure(&mut instance.store, &recipe.arguments)
    })?;
    let described = described.map_err(|text| failed("configure", &text))?;
    Ok((instance, described.into()))
}
