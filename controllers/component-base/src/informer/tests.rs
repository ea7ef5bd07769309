use futures::stream;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use super::*;

fn object(name: &str, uid: &str, version: u32) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(uid.into()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// Runs events through a store with one subscriber that reads at the end; returns what it read as `+name@version` texts.
fn check(events: Vec<Event<ConfigMap>>, expect: &[&str]) {
    let store = Store::new();
    let mut receiver = store.subscribe();
    for event in events {
        store.apply(event);
    }
    let mut seen = Vec::new();
    while let Some(event) = receiver.try_recv() {
        let text = |o: &ConfigMap| {
            format!(
                "{}@{}",
                o.metadata.name.as_ref().unwrap(),
                o.metadata.resource_version.as_ref().unwrap()
            )
        };
        seen.push(match event {
            InformerEvent::Added(o) => format!("+{}", text(&o)),
            InformerEvent::Updated { old, new } => format!("{}>{}", text(&old), text(&new)),
            InformerEvent::Deleted(o) => format!("-{}", text(&o)),
        });
    }
    assert_eq!(seen, expect);
}

#[test]
fn unread_events_merge() {
    check(
        vec![
            Event::Apply(object("a", "1", 1)),
            Event::Apply(object("a", "1", 2)),
        ],
        &["+a@2"],
    );
    check(
        vec![
            Event::Apply(object("a", "1", 1)),
            Event::Delete(object("a", "1", 2)),
        ],
        &["+a@1", "-a@2"],
    );
    check(
        vec![
            Event::Apply(object("a", "1", 1)),
            Event::Apply(object("a", "2", 2)),
            Event::Apply(object("a", "2", 3)),
        ],
        &["+a@1", "-a@1", "+a@3"],
    );
    check(
        vec![
            Event::Apply(object("a", "1", 1)),
            Event::Apply(object("a", "1", 1)),
        ],
        &["+a@1"],
    );
}

#[test]
fn a_relist_finds_what_is_gone() {
    check(
        vec![
            Event::Init,
            Event::InitApply(object("a", "1", 1)),
            Event::InitApply(object("b", "2", 1)),
            Event::InitDone,
            Event::Init,
            Event::InitApply(object("b", "2", 1)),
            Event::InitDone,
        ],
        &["+a@1", "+b@1", "-a@1"],
    );
}

#[tokio::test]
async fn late_subscribers_and_indexes() {
    let shutdown = Shutdown::new();
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(object("a", "1", 1))),
        Ok(Event::InitApply(object("b", "2", 2))),
        Ok(Event::InitDone),
    ];
    let informer = Informer::from_stream(
        stream::iter(events).chain(stream::pending()),
        "ConfigMap".into(),
        &shutdown,
    );
    informer.add_index("version", |o: &ConfigMap| {
        vec![o.metadata.resource_version.clone().unwrap()]
    });
    assert!(informer.wait_for_sync().await);
    assert_eq!(informer.by_index("version", "2").len(), 1);
    assert_eq!(informer.list_namespace("ns").len(), 2);
    assert!(informer.get("ns", "a").is_some() && informer.get("", "a").is_none());
    let mut receiver = informer.subscribe();
    assert!(matches!(
        receiver.recv().await,
        Some(InformerEvent::Added(_))
    ));
    assert!(matches!(
        receiver.recv().await,
        Some(InformerEvent::Added(_))
    ));
    shutdown.trigger();
    assert!(receiver.recv().await.is_none());
}
