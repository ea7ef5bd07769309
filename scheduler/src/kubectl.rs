//! `kubectl gantry why pod NAME` and `kubectl gantry whatif`: asks the scheduler, and shows its answer to people. `kubectl gantry page` ([`page`]) brings the
//! scheduler's page to a browser.
//!
//! The scheduler is asked at its secure port with the kubeconfig's credentials; it has to be reachable (`--scheduler`, say by `kubectl port-forward`).
//! Pods of `whatif -f` go through the API server's dry run first, so that they are what would be created; nothing is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use component_base::client::ClientConfig;
use http::Request;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use serde::de::DeserializeOwned;

use crate::explain::Explanation;
use crate::what_if::{AddNodes, Answer, Question};

pub(crate) mod page;
mod show;
#[cfg(test)]
mod tests;

pub use show::{show_answer, show_explanation};

#[derive(Parser)]
#[command(name = "kubectl-gantry", bin_name = "kubectl gantry", version)]
/// Asks Gantry's scheduler why a pod is where it is, and what would be if the cluster were another.
struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// What to print: `text` or `json`.
    #[arg(long, short, global = true, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    #[command(subcommand)]
    question: Ask,
}

/// How the scheduler and the API server are reached.
#[derive(Args)]
pub struct Connection {
    /// The kubeconfig; otherwise $KUBECONFIG, or ~/.kube/config.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// The namespace; otherwise the kubeconfig's.
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    /// The scheduler's secure port.
    #[arg(
        long,
        global = true,
        env = "GANTRY_SCHEDULER",
        default_value = "https://127.0.0.1:10259"
    )]
    scheduler: String,
    /// Who signed the scheduler's certificate; otherwise the kubeconfig's CA.
    #[arg(long, global = true)]
    certificate_authority: Option<PathBuf>,
    /// The scheduler's certificate is not looked at (it signs its own unless told otherwise).
    #[arg(long, global = true)]
    insecure_skip_tls_verify: bool,
}

#[derive(Subcommand)]
enum Ask {
    /// Why a pod has no node, or which it has.
    Why {
        /// `pod NAME` or `pod/NAME`.
        #[arg(required = true, num_args = 1..=2)]
        what: Vec<String>,
    },
    /// Where pods would go.
    Whatif(WhatIf),
    /// What the scheduler does, in a browser: serves its page on 127.0.0.1 until interrupted.
    Page(page::Page),
}

#[derive(Args)]
struct WhatIf {
    /// Pods that would be created (YAML or JSON).
    #[arg(long, short)]
    filename: Vec<PathBuf>,
    /// The scheduler would work by this configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Nodes that would be there, too: `3xm5.large`, `2xnode-7` (like a node there is) or `2x@node.yaml`.
    #[arg(long, value_delimiter = ',')]
    add_nodes: Vec<String>,
    /// Nodes that would not be there.
    #[arg(long, value_delimiter = ',')]
    drain: Vec<String>,
    /// Do not try the pods that wait now.
    #[arg(long)]
    without_waiting: bool,
}

/// Runs the command; its exit code.
pub fn main() -> i32 {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match done {
        Ok(text) => {
            print!("{text}");
            0
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            1
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<String> {
    let json = cli.output == "json";
    let clients = cli.connection.clients().await?;
    match cli.question {
        Ask::Why { what } => {
            let name = pod_name(&what)?;
            let path = format!("/gantry/why/{}/{name}", clients.namespace);
            let request = Request::get(path).body(Vec::new())?;
            let explanation: Explanation = ask(&clients.scheduler, request).await?;
            shown(json, &explanation, show_explanation)
        }
        Ask::Whatif(what_if) => {
            let question = what_if.question(&clients).await?;
            let body = serde_json::to_vec(&question)?;
            let request = Request::post("/gantry/whatif")
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(body)?;
            let answer: Answer = ask(&clients.scheduler, request).await?;
            shown(json, &answer, show_answer)
        }
        Ask::Page(page) => page.serve(clients).await.map(|()| String::new()),
    }
}

fn shown<T: serde::Serialize>(
    json: bool,
    of: &T,
    show: fn(&T) -> String,
) -> anyhow::Result<String> {
    match json {
        true => Ok(serde_json::to_string_pretty(of)? + "\n"),
        false => Ok(show(of)),
    }
}

/// `pod NAME` or `pod/NAME`.
fn pod_name(what: &[String]) -> anyhow::Result<String> {
    let (kind, name) = match what {
        [kind, name] => (kind.as_str(), name.as_str()),
        [both] => both.split_once('/').context("say which: pod NAME")?,
        _ => bail!("say which: pod NAME"),
    };
    if !matches!(kind, "pod" | "pods" | "po") {
        bail!("{kind:?}: only pods are scheduled");
    }
    if name.is_empty() || name.contains('/') {
        bail!("{name:?} is no name of a pod");
    }
    Ok(name.to_owned())
}

/// Whom to ask.
pub struct Clients {
    /// The API server.
    pub api: kube::Client,
    /// The scheduler's secure port.
    pub scheduler: kube::Client,
    /// Where pods are meant to be.
    pub namespace: String,
}

impl Connection {
    async fn clients(&self) -> anyhow::Result<Clients> {
        let environment = std::env::var_os("KUBECONFIG").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
        let kubeconfig = self.kubeconfig.clone().or(environment).or(home);
        let of = ClientConfig {
            kubeconfig,
            qps: 0.0,
            ..ClientConfig::new("kubectl-gantry")
        };
        let config = of.load().await?;
        let mut scheduler = config.clone();
        scheduler.cluster_url = self
            .scheduler
            .parse()
            .with_context(|| format!("--scheduler {:?}", self.scheduler))?;
        scheduler.tls_server_name = None;
        scheduler.accept_invalid_certs = self.insecure_skip_tls_verify;
        if let Some(path) = &self.certificate_authority {
            let pem = std::fs::read(path).with_context(|| path.display().to_string())?;
            let what = path.display().to_string();
            let certificates = component_base::tls::certificates(&what, &pem)?;
            scheduler.root_cert = Some(certificates.iter().map(|c| c.to_vec()).collect());
        }
        Ok(Clients {
            namespace: self
                .namespace
                .clone()
                .unwrap_or(config.default_namespace.clone()),
            api: of.build_from(config)?,
            scheduler: of.build_from(scheduler)?,
        })
    }
}

/// Sends a request and reads the answer, or the error the scheduler gives.
pub async fn ask<T: DeserializeOwned>(
    client: &kube::Client,
    request: Request<Vec<u8>>,
) -> anyhow::Result<T> {
    use http_body_util::BodyExt as _;
    let path = request.uri().path().to_owned();
    let request = request.map(kube::client::Body::from);
    let response = client.send(request).await;
    let response =
        response.context("asking the scheduler (--scheduler, --insecure-skip-tls-verify)")?;
    let code = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if code.is_success() {
        return serde_json::from_slice(&body).context("the scheduler's answer");
    }
    let told: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let told = told
        .as_ref()
        .and_then(|v| v.get("error").or(v.get("message")));
    match told.and_then(serde_json::Value::as_str) {
        Some(error) => bail!("{error}"),
        None => bail!("{path}: {code}: {}", String::from_utf8_lossy(&body).trim()),
    }
}

impl WhatIf {
    async fn question(&self, clients: &Clients) -> anyhow::Result<Question> {
        let mut question = Question {
            drain: self.drain.clone(),
            without_waiting: self.without_waiting,
            ..Question::default()
        };
        for path in &self.filename {
            for pod in pods_of_file(path)? {
                question.pods.push(
                    dry_run(clients, pod)
                        .await
                        .with_context(|| path.display().to_string())?,
                );
            }
        }
        for text in &self.add_nodes {
            question.add_nodes.push(nodes_to_add(text)?);
        }
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let config =
                serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
            question.config = Some(config);
        }
        Ok(question)
    }
}

/// The pod as the API server would store it.
async fn dry_run(clients: &Clients, pod: Pod) -> anyhow::Result<Pod> {
    let namespace = pod
        .metadata
        .namespace
        .clone()
        .unwrap_or(clients.namespace.clone());
    let api = kube::Api::<Pod>::namespaced(clients.api.clone(), &namespace);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    Ok(api.create(&params, &pod).await?)
}

/// The pods of a file of one or more documents.
fn pods_of_file(path: &Path) -> anyhow::Result<Vec<Pod>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
    let mut pods = Vec::new();
    for document in documents {
        let text = |field: &str| {
            document
                .get(field)
                .and_then(|v| v.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let (version, kind) = (text("apiVersion"), text("kind"));
        if (version.as_str(), kind.as_str()) != ("v1", "Pod") {
            bail!(
                "{}: {kind:?} of {version:?}: only pods can be asked about",
                path.display()
            );
        }
        pods.push(
            component_base::json::from_value(&document)
                .with_context(|| path.display().to_string())?,
        );
    }
    Ok(pods)
}

/// `3xm5.large`, or `3x@node.yaml`.
fn nodes_to_add(text: &str) -> anyhow::Result<AddNodes> {
    let wrong =
        || format!("--add-nodes {text:?}: say how many of what, as 3xm5.large or 3x@node.yaml");
    let (count, like) = text.split_once('x').with_context(wrong)?;
    let count = count.parse().with_context(wrong)?;
    if like.is_empty() {
        bail!(wrong());
    }
    match like.strip_prefix('@') {
        None => Ok(AddNodes {
            count,
            like: like.to_owned(),
            node: None,
        }),
        Some(path) => {
            let file = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
            let node: Node = serde_saphyr::from_str(&file).with_context(|| path.to_owned())?;
            Ok(AddNodes {
                count,
                like: String::new(),
                node: Some(node),
            })
        }
    }
}
