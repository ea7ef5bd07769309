//! The command lines, and what is printed. Pure.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cri_spec::v1;

/// The namespace of Kubernetes' images, the only one here.
const NAMESPACE: &str = "k8s.io";
/// What unpacked images stand on.
const SNAPSHOTTER: &str = "overlayfs";
/// What containerd's CRI calls an image that is not to be collected.
const PINNED_LABEL: &str = "io.cri-containerd.pinned=pinned";

/// Which of the programs was called, with its command line.
pub enum Program {
    Ctr(Vec<String>),
    Containerd(Vec<String>),
    Unknown(String),
}

impl Program {
    /// By the name it was called by, or by the first word.
    pub fn of(args: impl Iterator<Item = String>) -> Self {
        let args: Vec<String> = args.collect();
        let base = |text: &String| text.rsplit('/').next().unwrap_or_default().to_owned();
        for skipped in 0..2 {
            match args.get(skipped).map(base).as_deref() {
                Some("ctr") => return Self::Ctr(args[skipped..].to_vec()),
                Some("containerd") => return Self::Containerd(args[skipped..].to_vec()),
                _ => {}
            }
        }
        Self::Unknown(args.first().map(base).unwrap_or_default())
    }
}

pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The node's images, by the names of containerd's `ctr`.
#[derive(Debug, Parser)]
#[command(name = "ctr", version = version())]
pub struct Ctr {
    /// Address of the CRI's socket.
    #[arg(
        short,
        long,
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub address: String,
    /// Images are in one namespace: k8s.io.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    #[command(subcommand)]
    pub verb: Verb,
}

impl Ctr {
    /// # Errors
    /// Another namespace than Kubernetes' is asked for: nothing is there.
    pub fn check(&self) -> Result<(), String> {
        match (self.namespace.as_str(), &self.verb) {
            (NAMESPACE, _) | (_, Verb::Version) => Ok(()),
            (other, _) => Err(format!(
                "namespace {other:?} does not exist: images are in --namespace={NAMESPACE}"
            )),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Manage images.
    #[command(subcommand, aliases = ["image", "i"])]
    Images(Images),
    /// Fetch content.
    #[command(subcommand, alias = "c")]
    Content(Content),
    /// Print the versions of this program and of the runtime.
    Version,
}

#[derive(Debug, Subcommand)]
pub enum Images {
    /// Import images from an archive.
    Import(Import),
    /// Export images to an archive: not possible here.
    Export(Export),
    /// Give an image further names.
    Tag(Tag),
    /// List images.
    #[command(alias = "ls")]
    List(List),
    /// Remove images with all their names.
    #[command(aliases = ["rm", "delete", "del"])]
    Remove(Remove),
    /// Pull an image.
    Pull(Pull),
}

#[derive(Debug, Subcommand)]
pub enum Content {
    /// Pull an image: there is no content without an image here.
    Fetch(Pull),
}

#[derive(Debug, Args)]
pub struct Import {
    /// A label; only `io.cri-containerd.pinned=pinned` has a meaning.
    #[arg(long)]
    label: Vec<String>,
    /// Of the archive's platforms this machine's is taken in any case.
    #[arg(long)]
    all_platforms: bool,
    /// Images are unpacked in any case.
    #[arg(long)]
    no_unpack: bool,
    /// Images are known by their digests in any case.
    #[arg(long)]
    digests: bool,
    #[arg(long, default_value = SNAPSHOTTER)]
    snapshotter: String,
    /// The archive; `-`: standard input.
    pub archive: PathBuf,
}

impl Import {
    /// Whether the images are pinned.
    ///
    /// # Errors
    /// Something is asked for that there is not.
    pub fn pinned(&self) -> Result<bool, String> {
        if self.snapshotter != SNAPSHOTTER {
            return Err(format!(
                "--snapshotter={}: there is {SNAPSHOTTER} only",
                self.snapshotter
            ));
        }
        match self.label.iter().find(|label| *label != PINNED_LABEL) {
            Some(label) => Err(format!("--label={label}: there is {PINNED_LABEL} only")),
            None => Ok(!self.label.is_empty()),
        }
    }
}

#[derive(Debug, Args)]
pub struct Export {
    /// Whatever it was asked for.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Tag {
    /// Take the name from another image.
    #[arg(long)]
    pub force: bool,
    pub source: String,
    #[arg(required = true)]
    pub targets: Vec<String>,
}

#[derive(Debug, Args)]
pub struct List {
    /// Print the names only.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Remove {
    #[arg(required = true)]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Pull {
    /// Only this machine's.
    #[arg(long)]
    platform: Option<String>,
    pub image: String,
}

impl Pull {
    /// # Errors
    /// Another machine's platform is asked for.
    pub fn check(&self) -> Result<(), String> {
        let machine = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let of_machine = format!("linux/{machine}");
        match &self.platform {
            Some(platform) if *platform != of_machine => {
                Err(format!("--platform={platform}: this is {of_machine}"))
            }
            _ => Ok(()),
        }
    }
}

/// What scripts ask a node's `containerd`: it runs no daemon.
#[derive(Debug, Parser)]
#[command(name = "containerd", version = version())]
pub enum Containerd {
    /// Information on the configuration.
    #[command(subcommand)]
    Config(Config),
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print what is in force.
    Dump,
    /// The same: there is nothing to configure.
    Default,
}

/// What is in force of containerd's settings, in the form of its version 3.
pub fn config() -> String {
    format!(
        r#"version = 3

[plugins]
  [plugins."io.containerd.cri.v1.images"]
    snapshotter = "{SNAPSHOTTER}"

    [plugins."io.containerd.cri.v1.images".registry]
      config_path = "/etc/containerd/certs.d"

  [plugins."io.containerd.cri.v1.runtime"]
    enable_selinux = false

    [plugins."io.containerd.cri.v1.runtime".cni]
      bin_dirs = ["/opt/cni/bin"]
      conf_dir = "/etc/cni/net.d"
"#
    )
}

/// The lines of a list. As containerd has it, every name of an image is a line, its id too.
pub fn table(images: &[v1::Image], quiet: bool) -> Vec<String> {
    let mut names: Vec<(&str, &v1::Image)> = images
        .iter()
        .flat_map(|image| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            names
                .chain([&image.id])
                .map(move |name| (name.as_str(), image))
        })
        .collect();
    names.sort_by_key(|(name, _)| *name);
    if quiet {
        return names.iter().map(|(name, _)| (*name).to_owned()).collect();
    }
    let width = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let width = width.max("REF".len());
    let line = |name: &str, id: &str, size: &str, labels: &str| {
        format!("{name:width$} {id:71} {size:>12} {labels}")
    };
    let header = line("REF", "ID", "SIZE", "LABELS");
    let lines = names.iter().map(|(name, image)| {
        let labels = if image.pinned { PINNED_LABEL } else { "-" };
        line(name, &image.id, &image.size.to_string(), labels)
    });
    [header].into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctr(line: &str) -> Ctr {
        Ctr::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_lines_of_kind_are_understood() {
        let import = "ctr --namespace=k8s.io images import --all-platforms --digests --snapshotter=overlayfs -";
        let build = "ctr --namespace=k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests -";
        for (line, pinned) in [(import, false), (build, true)] {
            let ctr = ctr(line);
            ctr.check().unwrap();
            let Verb::Images(Images::Import(import)) = ctr.verb else {
                panic!("{line}")
            };
            assert_eq!(import.pinned(), Ok(pinned));
            assert_eq!(import.archive, PathBuf::from("-"));
        }
        let tag = ctr("ctr --namespace=k8s.io images tag --force sha256:1 a:1 b:1");
        let Verb::Images(Images::Tag(tag)) = tag.verb else {
            panic!()
        };
        assert!(tag.force && tag.targets == ["a:1", "b:1"]);
        ctr("ctr --namespace=k8s.io images list -q");
        ctr("ctr -n k8s.io i ls -q").check().unwrap();
        ctr("ctr --namespace=k8s.io content fetch --platform=linux/amd64 a:1");
    }

    #[test]
    fn what_there_is_not_is_refused_by_name() {
        let said = |line: &str| match ctr(line) {
            Ctr {
                verb: Verb::Images(Images::Import(import)),
                ..
            } => import.pinned().unwrap_err(),
            ctr => ctr.check().unwrap_err(),
        };
        assert_eq!(
            said("ctr images ls"),
            "namespace \"default\" does not exist: images are in --namespace=k8s.io"
        );
        assert_eq!(
            said("ctr images import --snapshotter=zfs -"),
            "--snapshotter=zfs: there is overlayfs only"
        );
        assert_eq!(
            said("ctr images import --label=a=b -"),
            "--label=a=b: there is io.cri-containerd.pinned=pinned only"
        );
    }

    #[test]
    fn the_program_is_what_it_is_called() {
        let of = |line: &str| match Program::of(line.split(' ').map(str::to_owned)) {
            Program::Ctr(args) => format!("ctr {}", args.len()),
            Program::Containerd(args) => format!("containerd {}", args.len()),
            Program::Unknown(name) => name,
        };
        assert_eq!(of("/usr/bin/ctr images ls"), "ctr 3");
        assert_eq!(of("containerd config dump"), "containerd 3");
        assert_eq!(of("./gantry-ctr ctr version"), "ctr 2");
        assert_eq!(of("./gantry-ctr images"), "gantry-ctr");
    }

    #[test]
    fn every_name_is_a_line() {
        let image = v1::Image {
            id: "sha256:1".into(),
            repo_tags: vec!["b:1".into(), "a:1".into()],
            size: 7,
            ..Default::default()
        };
        assert_eq!(
            table(std::slice::from_ref(&image), true),
            ["a:1", "b:1", "sha256:1"]
        );
        let lines = table(&[image], false);
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("REF "), "{lines:?}");
    }
}
