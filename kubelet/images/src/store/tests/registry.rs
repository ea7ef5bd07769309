//! A registry in this process, and the layers it has.

use super::*;

/// What a registry in this process holds and does.
#[derive(Default)]
pub(super) struct Fake {
    /// By path below `/v2/`.
    pub(super) documents: HashMap<String, Bytes>,
    pub(super) requests: Mutex<Vec<String>>,
    /// Blob answers are cut after this many bytes.
    pub(super) cut: AtomicUsize,
    /// Requests for a part are answered with this.
    pub(super) no_ranges: Option<StatusCode>,
    /// `user:password` asked for by a token realm.
    pub(super) credential: Option<String>,
    /// Bytes of junk that the token realm answers with.
    pub(super) token_junk: usize,
    /// Layers are said to lie behind a signed URL, where nobody listens.
    pub(super) signed: bool,
    pub(super) address: String,
    /// Says of every manifest that it is this one, and has none.
    pub(super) claims: Option<String>,
}

pub(super) fn serve(fake: &Fake, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
            .to_owned()
    };
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or("").to_owned();
    fake.requests.lock().unwrap().push(format!(
        "{} {path}{}{query} {}",
        request.method(),
        if query.is_empty() { "" } else { "?" },
        header("range")
    ));
    let answer = |status: StatusCode, body: Bytes| {
        Response::builder()
            .status(status)
            .body(Full::new(body))
            .unwrap()
    };
    if path == "/token" && fake.token_junk > 0 {
        return answer(StatusCode::OK, vec![b' '; fake.token_junk].into());
    }
    if fake.signed && path.contains("/blobs/") {
        let mut response = answer(StatusCode::TEMPORARY_REDIRECT, "".into());
        response.headers_mut().insert(
            "location",
            "http://127.0.0.1:1/blob?X-Signature=hush".parse().unwrap(),
        );
        return response;
    }
    if path == "/token" {
        use base64::Engine as _;
        let want = fake.credential.clone().unwrap_or_default();
        let want = format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(want)
        );
        return if header("authorization") == want {
            answer(StatusCode::OK, r#"{"token":"T"}"#.into())
        } else {
            answer(StatusCode::UNAUTHORIZED, "".into())
        };
    }
    if fake.credential.is_some() && header("authorization") != "Bearer T" {
        let challenge = format!(
            r#"Bearer realm="http://{}/token",service="s",scope="repository:x:pull""#,
            fake.address
        );
        let mut response = answer(StatusCode::UNAUTHORIZED, "".into());
        response
            .headers_mut()
            .insert("www-authenticate", challenge.parse().unwrap());
        return response;
    }
    if let (Some(digest), "HEAD") = (&fake.claims, request.method().as_str()) {
        let mut response = answer(StatusCode::OK, "".into());
        response
            .headers_mut()
            .insert("docker-content-digest", digest.parse().unwrap());
        return response;
    }
    let Some(body) = path
        .strip_prefix("/v2/")
        .and_then(|path| fake.documents.get(path))
    else {
        return answer(
            StatusCode::NOT_FOUND,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.into(),
        );
    };
    if path.contains("/blobs/") {
        let from: usize = header("range")
            .strip_prefix("bytes=")
            .and_then(|range| range.trim_end_matches('-').parse().ok())
            .unwrap_or(0);
        if let Some(status) = fake.no_ranges.filter(|_| from > 0) {
            let whole = if status == StatusCode::OK {
                body.clone()
            } else {
                Bytes::new()
            };
            return answer(status, whole);
        }
        let rest = body.slice(from..);
        let cut = fake.cut.load(Ordering::Relaxed);
        let part = if cut > 0 && rest.len() > cut {
            rest.slice(..cut)
        } else {
            rest
        };
        let mut response = answer(
            if from > 0 {
                StatusCode::PARTIAL_CONTENT
            } else {
                StatusCode::OK
            },
            part,
        );
        if from > 0 {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            response
                .headers_mut()
                .insert("content-range", range.parse().unwrap());
        }
        return response;
    }
    let mut response = answer(StatusCode::OK, body.clone());
    let digest = crate::digest::sha256(body);
    response
        .headers_mut()
        .insert("docker-content-digest", digest.parse().unwrap());
    response
}

pub(super) async fn start(mut fake: Fake) -> Arc<Fake> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    fake.address = listener.local_addr().unwrap().to_string();
    let fake = Arc::new(fake);
    let shared = fake.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let fake = shared.clone();
            let service = hyper::service::service_fn(move |request| {
                let response = serve(&fake, &request);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    });
    fake
}

pub(super) fn layer(files: &[(&str, &str)]) -> (Bytes, String, String) {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        builder
            .append_data(&mut header, name, text.as_bytes())
            .unwrap();
    }
    let plain = builder.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    let packed: Bytes = gzip.finish().unwrap().into();
    let digest = crate::digest::sha256(&packed);
    (packed, digest, crate::digest::sha256(&plain))
}

/// Puts an image with an index before it into the fake; answers its id.
pub(super) fn publish(
    fake: &mut Fake,
    repo: &str,
    tag: &str,
    layers: &[(Bytes, String, String)],
) -> String {
    let host = crate::manifest::Platform::host();
    let diff_ids: Vec<&String> = layers.iter().map(|layer| &layer.2).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "os": "linux", "architecture": host.architecture,
        "config": {"Cmd": [tag]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    let id = crate::digest::sha256(&config);
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(bytes, digest, _)| serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": bytes.len()}))
        .collect();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len()},
        "layers": descriptors,
    }))
    .unwrap();
    let manifest_digest = crate::digest::sha256(&manifest);
    let index = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "manifests": [
            {"mediaType": "m", "digest": format!("sha256:{}", "0".repeat(64)), "size": 1, "platform": {"os": "windows", "architecture": "amd64"}},
            {"mediaType": "m", "digest": manifest_digest, "size": manifest.len(), "platform": {"os": "linux", "architecture": host.architecture}},
        ],
    }))
    .unwrap();
    let index_digest = crate::digest::sha256(&index);
    let mut put = |kind: &str, name: &str, bytes: Bytes| {
        fake.documents
            .insert(format!("{repo}/{kind}/{name}"), bytes);
    };
    put("manifests", tag, index.clone().into());
    put("manifests", &index_digest, index.into());
    put("manifests", &manifest_digest, manifest.into());
    put("blobs", &id, config.into());
    for (bytes, digest, _) in layers {
        put("blobs", digest, bytes.clone());
    }
    id
}
