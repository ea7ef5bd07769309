//! Manifests and indexes of OCI and Docker, and the choice of a platform.

use serde::Deserialize;

/// Media types asked for, in the order of preference.
pub(crate) const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
/// Indexes that may stand one behind the other before a manifest. Upstream's containerd goes on for as long as there are any.
pub(crate) const MAX_INDEXES: usize = 4;
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
/// Layers an image may have: overlayfs takes no more lower directories.
pub(crate) const MAX_LAYERS: usize = 500;

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl Descriptor {
    /// Attestations and the like, which are no image to run.
    fn is_attestation(&self) -> bool {
        self.annotations.as_ref().is_some_and(|annotations| {
            annotations
                .get("vnd.docker.reference.type")
                .is_some_and(|kind| kind == "attestation-manifest")
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// What a digest may lead to.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// The way from the document that a name means to the manifest, through indexes of indexes if need be.
#[derive(Debug, Default)]
pub(crate) struct Descent {
    indexes: usize,
    /// The platform by the word of the last index; `None`: it did not say, or there was none.
    platform: Option<Platform>,
}

/// Why there is no way on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescentError {
    #[error("no match for platform in manifest {0}")]
    NoMatchingPlatform(Platform),
    #[error("leads through more than {MAX_INDEXES} indexes")]
    TooDeep,
    #[error("digest {digest:?}: {reason}")]
    Digest { digest: String, reason: String },
}

impl Descent {
    /// The digest of the document that an index leads `host` to.
    pub(crate) fn choose(
        &mut self,
        host: &Platform,
        entries: &[Descriptor],
    ) -> Result<String, DescentError> {
        self.indexes += 1;
        if self.indexes > MAX_INDEXES {
            return Err(DescentError::TooDeep);
        }
        let chosen = host
            .choose(entries)
            .ok_or_else(|| DescentError::NoMatchingPlatform(host.clone()))?;
        crate::reference::validate_digest(&chosen.digest).map_err(|error| {
            DescentError::Digest {
                digest: chosen.digest.clone(),
                reason: error.to_string(),
            }
        })?;
        self.platform.clone_from(&chosen.platform);
        Ok(chosen.digest.clone())
    }

    /// Whether an image whose config says `config` is one to run here. As containerd: the word of an index counts for more, and
    /// an image that is no choice of several is taken as it is, for it may hold nothing but data, or run by an emulator.
    ///
    /// DIFFERS: one of another operating system is refused by name, where containerd fails only when a container of it starts.
    pub(crate) fn takes(&self, host: &Platform, config: &Platform) -> bool {
        let chosen_blindly = self.indexes > 0 && self.platform.is_none();
        match chosen_blindly {
            true => host.rank(config).is_some(),
            false => config.normalized().os == host.os,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Why a document is no manifest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "media type {0:?} is no longer supported, rebuild the image with manifest version 2 or OCI"
    )]
    Schema1(String),
    #[error("neither an image manifest nor an index (media type {0:?})")]
    Unknown(String),
    #[error("{field} {value:?}: {reason}")]
    Invalid {
        field: &'static str,
        value: String,
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads a document. What it holds decides, not what a server calls it; a document that could be both is refused.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let media_type = raw.media_type.unwrap_or_default();
        if media_type.starts_with(DOCKER_SCHEMA1) || raw.schema_version == Some(1) {
            return Err(ManifestError::Schema1(media_type));
        }
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) => {
                if layers.len() > MAX_LAYERS {
                    return Err(ManifestError::Invalid {
                        field: "layers",
                        value: layers.len().to_string(),
                        reason: format!("at most {MAX_LAYERS} are supported"),
                    });
                }
                for descriptor in layers.iter().chain([&config]) {
                    crate::reference::validate_digest(&descriptor.digest).map_err(|error| {
                        ManifestError::Invalid {
                            field: "digest",
                            value: descriptor.digest.clone(),
                            reason: error.to_string(),
                        }
                    })?;
                }
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            _ => Err(ManifestError::Unknown(media_type)),
        }
    }
}

impl Platform {
    /// This machine's, by the names of Go.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// By the names of Go, and without a variant that says nothing. Upstream: `platforms.Normalize`.
    fn normalized(&self) -> Self {
        let os = match self.os.to_lowercase() {
            os if os.is_empty() => "linux".to_owned(),
            os => os,
        };
        let variant = self.variant.as_deref().unwrap_or_default().to_lowercase();
        let architecture = self.architecture.to_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("amd64" | "x86_64" | "x86-64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("arm64" | "aarch64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        };
        Self {
            os,
            architecture: architecture.to_owned(),
            variant: Some(variant.to_owned()).filter(|variant| !variant.is_empty()),
        }
    }

    /// What runs on a machine that says so of itself, the best first: architectures and variants.
    ///
    /// Upstream: `platforms.Only`. 386 runs on amd64, an older ARM on a newer, and 32-bit ARM on arm64.
    fn runs(&self) -> Vec<(&str, Option<String>)> {
        let own = (self.architecture.as_str(), self.variant.clone());
        let arm = |newest: u32| {
            let versions = (5..=newest).rev();
            versions.map(|version| ("arm", Some(format!("v{version}"))))
        };
        let number = || self.variant.as_deref()?.strip_prefix('v')?.parse().ok();
        match own.0 {
            "amd64" => vec![own, ("386", None)],
            "arm64" => [own].into_iter().chain(arm(8)).collect(),
            "arm" => match number() {
                // No processor is of a later one.
                Some(newest) if (5..=8).contains(&newest) => arm(newest).collect(),
                _ => vec![own],
            },
            _ => vec![own],
        }
    }

    /// How well `candidate` runs here: less is better, `None` not at all.
    pub(crate) fn rank(&self, candidate: &Self) -> Option<usize> {
        let (own, candidate) = (self.normalized(), candidate.normalized());
        if candidate.os != own.os {
            return None;
        }
        let wanted = (candidate.architecture.as_str(), candidate.variant.clone());
        own.runs().iter().position(|runs| *runs == wanted)
    }

    /// The best of an index for this platform; of equals, the first.
    pub(crate) fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        manifests
            .iter()
            .filter(|descriptor| !descriptor.is_attestation())
            .filter_map(|descriptor| {
                // An entry that does not say is taken if nothing better is there.
                let rank = match &descriptor.platform {
                    Some(platform) => self.rank(platform)?,
                    None => usize::MAX,
                };
                Some((rank, descriptor))
            })
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, descriptor)| descriptor)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/');
        Platform {
            os: parts.next().unwrap().to_owned(),
            architecture: parts.next().unwrap().to_owned(),
            variant: parts.next().map(str::to_owned),
        }
    }

    fn check(own: &str, offered: &[&str], expect: Option<&str>) {
        let manifests: Vec<Descriptor> = offered
            .iter()
            .map(|text| Descriptor {
                media_type: String::new(),
                digest: (*text).to_owned(),
                size: 1,
                platform: Some(platform(text)),
                annotations: None,
            })
            .collect();
        let got = platform(own)
            .choose(&manifests)
            .map(|descriptor| descriptor.digest.as_str());
        assert_eq!(got, expect, "{own} of {offered:?}");
    }

    #[test]
    fn chooses() {
        check(
            "linux/amd64",
            &["linux/arm64", "linux/amd64"],
            Some("linux/amd64"),
        );
        check(
            "linux/amd64",
            &["linux/386", "linux/amd64"],
            Some("linux/amd64"),
        );
        check("linux/amd64", &["linux/386"], Some("linux/386"));
        check("linux/amd64", &["windows/amd64", "unknown/unknown"], None);
        check(
            "linux/arm64/v8",
            &["linux/arm/v7", "linux/arm64"],
            Some("linux/arm64"),
        );
        check(
            "linux/arm/v7",
            &["linux/arm/v5", "linux/arm/v6"],
            Some("linux/arm/v6"),
        );
        check("linux/arm/v6", &["linux/arm/v7"], None);
        // As containerd's `platforms.Only`.
        let arm64 = "linux/arm64/v8";
        check(
            arm64,
            &["linux/arm/v6", "linux/arm/v7"],
            Some("linux/arm/v7"),
        );
        check(arm64, &["linux/arm", "linux/arm/v8"], Some("linux/arm/v8"));
        check(arm64, &["linux/arm/7"], Some("linux/arm/7"));
        check(arm64, &["linux/armhf", "linux/arm64"], Some("linux/arm64"));
        check(arm64, &["linux/aarch64/8"], Some("linux/aarch64/8"));
        check(arm64, &["linux/arm64/v9", "linux/arm/v4"], None);
        check("linux/arm/v7", &["linux/arm64", "linux/arm/v8"], None);
        check("linux/amd64", &["linux/amd64/v3"], None);
        check("linux/amd64", &["linux/i386"], Some("linux/i386"));
        check("linux/amd64", &["Linux/AMD64/v1"], Some("Linux/AMD64/v1"));
        check("linux/amd64", &["/x86_64"], Some("/x86_64"));
        check("linux/s390x", &["linux/s390x/z16"], None);
    }

    #[test]
    fn parses() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{digest}","size":3}}"#);
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
        assert!(matches!(
            Document::parse(manifest.as_bytes()),
            Ok(Document::Manifest(_))
        ));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        assert!(matches!(
            Document::parse(index.as_bytes()),
            Ok(Document::Index(_))
        ));
        let both =
            format!(r#"{{"schemaVersion":2,"manifests":[],"config":{descriptor},"layers":[]}}"#);
        assert!(matches!(
            Document::parse(both.as_bytes()),
            Err(ManifestError::Unknown(_))
        ));
        let old = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(
            Document::parse(old.as_bytes()),
            Err(ManifestError::Schema1(_))
        ));
        let bad = manifest.replace(&digest, "sha256:../../etc");
        assert!(matches!(
            Document::parse(bad.as_bytes()),
            Err(ManifestError::Invalid {
                field: "digest",
                ..
            })
        ));
    }
}
