use super::*;

const FINE: &str = "{name: p, matchImages: [r.io], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1}";

fn file(version: &str, providers: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/{version}\nkind: CredentialProviderConfig\nproviders: [{providers}]\n"
    )
}

fn read_with(text: &str, tokens: bool) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, text).unwrap();
    load(&path, tokens).map_err(|e| e.to_string())
}

fn read(text: &str) -> Result<Loaded, String> {
    read_with(text, true)
}

#[test]
fn every_version_and_field() {
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let loaded = read(&file(version, FINE)).unwrap();
        let provider = &loaded.providers[0];
        assert_eq!(provider.name, "p");
        assert_eq!(provider.default_cache_duration, Duration::from_secs(60));
        assert_eq!((provider.api_version, &provider.token), (V1, &None));
    }
    let loaded = read(&file(
        "v1",
        "{name: p, matchImages: ['*.r.io', 'r.io:5000/team'], defaultCacheDuration: '0', apiVersion: credentialprovider.kubelet.k8s.io/v1,
          args: [a, b], env: [{name: NAME, value: V}],
          tokenAttributes: {serviceAccountTokenAudience: aud, cacheType: Token, requireServiceAccount: true,
            requiredServiceAccountAnnotationKeys: [r.io/Role], optionalServiceAccountAnnotationKeys: [hint]}}",
    ))
    .unwrap();
    let provider = &loaded.providers[0];
    assert_eq!(provider.match_images.len(), 2);
    assert_eq!(provider.args, ["a", "b"]);
    assert_eq!(
        (
            provider.env[0].name.as_str(),
            provider.env[0].value.as_str()
        ),
        ("NAME", "V")
    );
    let token = provider.token.as_ref().unwrap();
    assert_eq!(
        (token.audience.as_str(), token.cache_type),
        ("aud", CacheType::Token)
    );
    assert!(token.require_service_account);
    assert_eq!(token.required_annotations, ["r.io/Role"]);
    assert_eq!(token.optional_annotations, ["hint"]);
}

#[test]
fn read_strictly() {
    let token = FINE.replace('}', ", tokenAttributes: {cacheType: Token}}");
    for (text, expect) in [
        (
            file("v1", &FINE.replace("name", "nam")),
            "unknown field \"providers[0].nam\"",
        ),
        (
            file("v1beta1", &token),
            "unknown field \"providers[0].tokenAttributes\"",
        ),
        (
            file("v1alpha1", &token),
            "unknown field \"providers[0].tokenAttributes\"",
        ),
        (
            file("v2", FINE),
            "no kind \"CredentialProviderConfig\" is registered for version \"kubelet.config.k8s.io/v2\"",
        ),
        (
            file("v1", FINE).replace("ProviderConfig", "Provider"),
            "no kind \"CredentialProvider\"",
        ),
        (
            file("v1", &FINE.replace("name: p", "name: p, name: q")),
            "already set in map",
        ),
        (file("v1", &FINE.replace("1m", "5")), "expected a string"),
        ("{".to_owned(), "failed to load config file"),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.starts_with("error decoding config"), "{error}");
        assert!(error.contains(expect), "{expect}: {error}");
    }
}

/// `change`: what stands in the place of a part of what is fine.
fn refused(change: (&str, &str), expect: &str) {
    let text = FINE.replace(change.0, change.1);
    assert_ne!(text, FINE, "{change:?}");
    let error = read(&file("v1", &text)).unwrap_err();
    assert!(
        error.starts_with("failed to validate credential provider config: ")
            && error.contains(expect),
        "{change:?}: {error}"
    );
}

#[test]
fn validated() {
    let of_name = |to: &'static str| ("name: p", to);
    refused(
        of_name("name: a/b"),
        "providers.name: Invalid value: \"a/b\": provider name cannot contain '/'",
    );
    refused(of_name("name: a b"), "provider name cannot contain spaces");
    refused(of_name("name: ."), "provider name cannot be '.'");
    refused(of_name("name: .."), "provider name cannot be '..'");
    refused(of_name("name: ''"), "provider name cannot be empty");
    refused(
        ("[r.io]", "[]"),
        "providers.matchImages: Required value: at least 1 item in matchImages is required",
    );
    refused(
        ("[r.io]", "['a b']"),
        "providers.matchImages: Invalid value: \"a b\": match image is invalid",
    );
    refused(
        ("defaultCacheDuration: 1m", "args: []"),
        "providers.defaultCacheDuration: Required value",
    );
    refused(
        ("1m", "-1m"),
        "providers.defaultCacheDuration: Invalid value: \"-1m\": must be greater than or equal to 0",
    );
    refused(
        ("1m", "soon"),
        "providers.defaultCacheDuration: Invalid value: \"soon\": time: invalid duration",
    );
    refused(
        ("k8s.io/v1", "k8s.io/v2"),
        "providers.apiVersion: Unsupported value: \"credentialprovider.kubelet.k8s.io/v2\": supported values",
    );
    refused(
        (", apiVersion: credentialprovider.kubelet.k8s.io/v1", ""),
        "providers.apiVersion: Required value",
    );
    let none = read(&file("v1", "")).unwrap_err();
    assert!(none.contains("providers: Required value: at least 1 item in plugins is required"));
    let twice = read(&file("v1", &format!("{FINE}, {FINE}"))).unwrap_err();
    assert_eq!(
        twice,
        "duplicate provider name \"p\" found in configuration file(s)"
    );
    let all = read(&file("v1", "{}")).unwrap_err();
    for field in ["name", "matchImages", "defaultCacheDuration", "apiVersion"] {
        assert!(
            all.contains(&format!("providers.{field}: ")),
            "{field}: {all}"
        );
    }
}

#[test]
fn token_attributes() {
    let with =
        |attributes: &str| FINE.replace('}', &format!(", tokenAttributes: {{{attributes}}}}}"));
    let fine =
        "serviceAccountTokenAudience: a, cacheType: ServiceAccount, requireServiceAccount: false";
    assert!(read(&file("v1", &with(fine))).is_ok());
    let off = read_with(&file("v1", &with(fine)), false).unwrap_err();
    assert!(off.contains("tokenAttributes: Forbidden: tokenAttributes is not supported when KubeletServiceAccountTokenForCredentialProviders"));
    let beta = with(fine).replace("k8s.io/v1,", "k8s.io/v1beta1,");
    let beta = read(&file("v1", &beta)).unwrap_err();
    assert!(beta.contains(
        "tokenAttributes is only supported for credentialprovider.kubelet.k8s.io/v1 API version"
    ));
    for (from, to, expect) in [
        (
            "serviceAccountTokenAudience: a, ",
            "",
            "serviceAccountTokenAudience: Required value",
        ),
        (
            ", requireServiceAccount: false",
            "",
            "requireServiceAccount: Required value",
        ),
        (
            "cacheType: ServiceAccount, ",
            "",
            "cacheType: Required value",
        ),
        (
            "ServiceAccount,",
            "Pod,",
            "cacheType: Unsupported value: \"Pod\"",
        ),
        (
            "false",
            "false, requiredServiceAccountAnnotationKeys: [k]",
            "requireServiceAccount cannot be false when",
        ),
        (
            "false",
            "true, requiredServiceAccountAnnotationKeys: [k], optionalServiceAccountAnnotationKeys: [k]",
            "Invalid value: [\"k\"]: annotation keys cannot be both required and optional",
        ),
        (
            "false",
            "false, optionalServiceAccountAnnotationKeys: [k, k]",
            "optionalServiceAccountAnnotationKeys: Invalid value: \"k\": must be unique",
        ),
        (
            "false",
            "true, requiredServiceAccountAnnotationKeys: ['a b']",
            "requiredServiceAccountAnnotationKeys: Invalid value: \"a b\": name part must consist",
        ),
    ] {
        let text = fine.replacen(from, to, 1);
        assert_ne!(text, fine);
        let error = read(&file("v1", &with(&text))).unwrap_err();
        assert!(error.contains(expect), "{text}: {error}");
    }
}

#[test]
fn a_folder_of_files_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, provider: &str| {
        let text = file("v1", &FINE.replace("name: p", &format!("name: {provider}")));
        std::fs::write(dir.path().join(name), text).unwrap();
    };
    let names = || -> Result<Vec<String>, String> {
        let loaded = load(dir.path(), true).map_err(|e| e.to_string())?;
        Ok(loaded.providers.into_iter().map(|p| p.name).collect())
    };
    assert!(
        names()
            .unwrap_err()
            .starts_with("no configuration files found in directory")
    );
    put("b.yml", "first");
    put("c.json.bak", "unread");
    put("c.yaml", "second");
    std::fs::create_dir(dir.path().join("a.yaml")).unwrap();
    assert_eq!(names().unwrap(), ["first", "second"]);
    put("a.json", "before");
    assert_eq!(names().unwrap(), ["before", "first", "second"]);
    put("d.yaml", "first");
    assert_eq!(
        names().unwrap_err(),
        "duplicate provider name \"first\" found in configuration file(s)"
    );
    let missing = load(&dir.path().join("none"), true)
        .unwrap_err()
        .to_string();
    assert!(missing.starts_with("unable to access path"), "{missing}");
}

#[test]
fn the_hash_is_upstreams() {
    // printf '\0\0\0\0\0\0\0\3abc' | sha256sum: the length in eight bytes, then the file.
    let mut hasher = Sha256::new();
    let text = file("v1", FINE);
    hasher.update([[0; 7].as_slice(), &[u8::try_from(text.len()).unwrap()]].concat());
    hasher.update(&text);
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(read(&text).unwrap().hash, format!("sha256:{hex}"));
}
