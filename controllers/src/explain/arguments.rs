//! The command line of `explain`.

use std::path::{Path, PathBuf};

use component_base::client::ClientConfig;
use component_base::flags::{FlagError, FlagSet, Flags};

use super::kind::Kind;

/// How the report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Text,
    Json,
}

/// What is to be explained, and how.
#[derive(Clone, Debug)]
pub struct Arguments {
    pub kind: Kind,
    pub name: String,
    /// `None`: that of the configuration.
    pub namespace: Option<String>,
    pub output: Output,
    pub client: ClientConfig,
}

/// What is wrong with the command line.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// `--help`: no error, but no arguments either.
    #[error("{0}")]
    Help(String),
    /// No object.
    #[error("what is to be explained? Say KIND/NAME, as deployment/web")]
    Missing,
    /// Not KIND/NAME.
    #[error("{0:?} is not KIND/NAME, as deployment/web")]
    Object(String),
    /// A kind that has no explanation.
    #[error("{given:?} cannot be explained; these can: {}", names())]
    Kind { given: String },
    /// A flag.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// The value of `--output`.
    #[error("invalid argument {0:?} for \"--output\": must be text or json")]
    Output(String),
}

fn names() -> String {
    Kind::ALL
        .map(|kind| kind.name().to_ascii_lowercase())
        .join(", ")
}

fn flag_set() -> FlagSet {
    let mut flags = FlagSet::new(
        "kube-controller-manager explain KIND/NAME",
        "Says which controllers act on an object, what they decided last, and what would be done next. Nothing is written.",
    );
    flags.string(
        "kubeconfig",
        "",
        "Path to the kubeconfig file; else $KUBECONFIG, ~/.kube/config, or the account of the pod.",
    );
    flags.string("master", "", "The address of the Kubernetes API server.");
    flags.string(
        "namespace",
        "",
        "The object's namespace; else that of the kubeconfig.",
    );
    flags.string("output", "text", "text or json");
    flags.shorthand('n', "namespace");
    flags.shorthand('o', "output");
    flags
}

impl Arguments {
    /// `words`: those after the command.
    ///
    /// # Errors
    /// See [`ArgumentError`].
    pub fn parse(words: Vec<String>) -> Result<Self, ArgumentError> {
        let set = flag_set();
        let mut words = words.into_iter().peekable();
        let object = words.next_if(|word| !word.starts_with('-'));
        let flags = match set.parse(words) {
            Err(FlagError::Help) => return Err(ArgumentError::Help(set.usage())),
            parsed => parsed?,
        };
        let object = object.ok_or(ArgumentError::Missing)?;
        let (kind, name) = match object.split_once('/') {
            Some((kind, name)) if !name.is_empty() && !name.contains('/') => (kind, name),
            _ => return Err(ArgumentError::Object(object)),
        };
        let given = kind.to_owned();
        let output = match flags.string("output") {
            "text" => Output::Text,
            "json" => Output::Json,
            other => return Err(ArgumentError::Output(other.to_owned())),
        };
        Ok(Self {
            kind: Kind::parse(kind).ok_or(ArgumentError::Kind { given })?,
            name: name.to_owned(),
            namespace: flags.optional("namespace").map(str::to_owned),
            output,
            client: client(&flags),
        })
    }
}

/// Upstream: the loading rules of `k8s.io/client-go/tools/clientcmd`, of one file.
fn client(flags: &Flags) -> ClientConfig {
    let master = flags.optional("master").map(str::to_owned);
    let given = flags.optional("kubeconfig").map(PathBuf::from);
    let from_environment = || std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
    let at_home = || {
        let home = std::env::var_os("HOME")?;
        let path = Path::new(&home).join(".kube/config");
        path.is_file().then_some(path)
    };
    let kubeconfig = match master {
        Some(_) => given,
        None => given
            .or_else(|| from_environment().map(PathBuf::from))
            .or_else(at_home),
    };
    ClientConfig {
        kubeconfig,
        master,
        ..ClientConfig::new("kube-controller-manager-explain")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        let words = line.split_whitespace().map(str::to_owned).collect();
        Arguments::parse(words).map_err(|error| error.to_string())
    }

    #[test]
    fn command_lines() {
        let found = parse("deploy/web -n shop -o json --kubeconfig /k").unwrap();
        assert_eq!((found.kind, found.name.as_str()), (Kind::Deployment, "web"));
        assert_eq!(found.namespace.as_deref(), Some("shop"));
        assert_eq!(found.output, Output::Json);
        assert_eq!(found.client.kubeconfig.as_deref(), Some(Path::new("/k")));
        assert_eq!(parse("ds/net").unwrap().output, Output::Text);
        for (line, expect) in [
            ("", "what is to be explained?"),
            ("web", "\"web\" is not KIND/NAME"),
            ("deploy/a/b", "\"deploy/a/b\" is not KIND/NAME"),
            (
                "pod/a",
                "\"pod\" cannot be explained; these can: deployment, replicaset",
            ),
            (
                "deploy/web -o yaml",
                "invalid argument \"yaml\" for \"--output\"",
            ),
            ("deploy/web --color", "color"),
            ("deploy/web other", "other"),
            ("--help", "Usage:"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expect), "{line}: {error}");
        }
    }
}
