//! [`TestCluster`]: a whole scheduler on an API server in memory, in one thread and by virtual time, for the tests of plugins.
//!
//! Everything but the process is real: informers, queue, cache, decisions, binding, the plugins' own kinds. There is no kubelet and no controller: a test makes
//! nodes, pods and objects, lets time pass, and looks.

use std::time::Duration;

use anyhow::{Context as _, bail};
use component_base::leader_election::Leadership;
use component_base::metrics::Registry;
use component_base::tasks::spawn_answer;
use component_base::testing::{Object, World};
use framework::{ObjectKind, Registry as Plugins};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{Decisions, Seams, assemble};
use crate::config::{KubeSchedulerConfiguration, set_defaults, validate};
use crate::options::{Options, flag_set};

/// A cluster of an API server and a scheduler. See the module.
pub struct TestCluster {
    world: World,
    running: JoinHandle<anyhow::Result<()>>,
}

impl TestCluster {
    /// Starts a scheduler that has `plugins` beside its own and goes by `config`, the text of a `KubeSchedulerConfiguration` without the two lines that say so.
    /// Needs a runtime of one thread whose clock stands still: `#[tokio::test(start_paused = true)]`.
    ///
    /// # Errors
    /// What ends kube-scheduler at its start: two plugins of one name, a configuration that is wrong, a plugin that refuses its arguments.
    pub fn start(plugins: &Plugins, config: &Value) -> anyhow::Result<Self> {
        let world = World::begin();
        let flags = flag_set().parse(vec!["--placement-seed=1".to_owned()]);
        let mut options = Options::from_flags(&flags.context("flags")?)?;
        options.config = decoded(config)?;
        let component = assemble(Seams {
            options: &options,
            plugins,
            client: world.api.client(),
            events: world.api.client(),
            leadership: Leadership::always(),
            clock: world.clock.clone(),
            shutdown: world.shutdown.clone(),
            metrics: Registry::new(),
            decisions: Decisions::InATask,
        })?;
        let running = component.run(world.shutdown.clone());
        let running = spawn_answer(running);
        Ok(Self { world, running })
    }

    /// Makes an object of Kubernetes', as a node or a pod; the answer has what the API server sets.
    ///
    /// # Panics
    /// It is there already.
    pub fn create<K: Object>(&self, object: &K) -> K {
        self.world.api.create(object)
    }

    /// Replaces an object and its status, whatever its version and its UID.
    ///
    /// # Panics
    /// It is not there.
    pub fn update<K: Object>(&self, object: &K) -> K {
        let value = serde_json::to_value(object).expect("API types serialise into memory");
        let mut object: K = serde_json::from_value(value).expect("what is written is read");
        object.meta_mut().uid = None;
        self.world.api.update(&object)
    }

    /// Deletes an object. A pod on a node would wait for its kubelet; here it is gone.
    ///
    /// # Panics
    /// It is not there.
    pub fn delete<K: Object>(&self, namespace: &str, name: &str) {
        self.world.api.delete::<K>(namespace, name);
        if self.world.api.get::<K>(namespace, name).is_some() {
            self.world.api.delete::<K>(namespace, name);
        }
    }

    /// Makes an object of a plugin's own kind, or replaces it where it is: `metadata` and all else.
    ///
    /// # Panics
    /// It is no such object.
    pub async fn apply(&self, kind: ObjectKind, object: Value) {
        let mut object: DynamicObject = serde_json::from_value(object).expect("an object");
        let name = object.metadata.name.clone().expect("has a name");
        let api = self.api(kind, object.metadata.namespace.as_deref());
        let there = api.get_opt(&name).await.expect("answers");
        let params = PostParams::default();
        let done = match there {
            None => api.create(&params, &object).await,
            Some(there) => {
                object.metadata.resource_version = there.metadata.resource_version;
                api.replace(&name, &params, &object).await
            }
        };
        done.expect("is written");
    }

    /// Deletes an object of a plugin's own kind; the namespace is empty for one of the cluster.
    ///
    /// # Panics
    /// It is not there.
    pub async fn delete_object(&self, kind: ObjectKind, namespace: &str, name: &str) {
        let api = self.api(kind, Some(namespace).filter(|n| !n.is_empty()));
        let deleted = api.delete(name, &DeleteParams::default()).await;
        deleted.expect("is deleted");
    }

    fn api(&self, kind: ObjectKind, namespace: Option<&str>) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
        let client = self.world.api.client();
        match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        }
    }

    /// Lets a time pass in which all that can happen does; it takes no real time.
    pub async fn settle(&self, time: Duration) {
        self.world.settle(time).await;
    }

    /// The node a pod was bound to; `None` while it has none.
    pub fn node_of(&self, namespace: &str, name: &str) -> Option<String> {
        let pod: Pod = self.world.api.get(namespace, name)?;
        pod.spec?.node_name
    }

    /// Why a pod has no node, as its condition `PodScheduled` says; `None` where nothing is said.
    pub fn why(&self, namespace: &str, name: &str) -> Option<String> {
        let pod: Pod = self.world.api.get(namespace, name)?;
        let conditions = pod.status?.conditions?;
        let scheduled = conditions
            .into_iter()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        scheduled?.message
    }

    /// Ends the scheduler.
    ///
    /// # Panics
    /// It ended with an error, or panicked.
    pub async fn end(self) {
        self.world.end(self.running).await;
    }
}

fn decoded(config: &Value) -> anyhow::Result<KubeSchedulerConfiguration> {
    let mut config: KubeSchedulerConfiguration =
        serde_path_to_error::deserialize(config).context("the configuration")?;
    set_defaults(&mut config);
    let errors = validate(&config);
    if !errors.is_empty() {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        bail!("the configuration: [{}]", errors.join(", "));
    }
    Ok(config)
}
