use futures::stream;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
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

/// Who made it waits for it, and takes no object that goes, or is another's, for the one that was made.
#[test]
fn what_is_made_is_told_before_it_goes_or_changes_hands() {
    let mut going = object("a", "1", 3);
    going.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
    let mut given = object("a", "1", 3);
    given.metadata.owner_references = Some(vec![OwnerReference::default()]);
    for changed in [going, given] {
        let mut last = changed.clone();
        last.metadata.resource_version = Some("4".into());
        check(
            vec![
                Event::Apply(object("a", "1", 1)),
                Event::Apply(object("a", "1", 2)),
                Event::Apply(changed.clone()),
                Event::Apply(last.clone()),
            ],
            &["+a@2", "a@2>a@4"],
        );
        last.metadata.resource_version = Some("5".into());
        check(
            vec![
                Event::Apply(object("a", "1", 1)),
                Event::Apply(changed),
                Event::Delete(last),
            ],
            &["+a@1", "-a@5"],
        );
    }
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

type Seen = Arc<Mutex<Vec<String>>>;

/// Notes what a handler is told, as `+name@version`.
fn note(seen: &Seen) -> impl FnMut(InformerEvent<ConfigMap>) + Send + 'static {
    let seen = seen.clone();
    move |event| {
        let sign = match &event {
            InformerEvent::Added(_) => "+",
            InformerEvent::Updated { .. } => "~",
            InformerEvent::Deleted(_) => "-",
        };
        let meta = &event.object().metadata;
        let (name, version) = (meta.name.as_ref(), meta.resource_version.as_ref());
        let text = format!("{sign}{}@{}", name.unwrap(), version.unwrap());
        seen.lock().unwrap().push(text);
    }
}

fn take(seen: &Seen) -> Vec<String> {
    std::mem::take(&mut *seen.lock().unwrap())
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn handlers_are_told_in_order_and_late_ones_of_what_is_stored() {
    let shutdown = Shutdown::new();
    let (events, stream) = futures::channel::mpsc::unbounded();
    let informer = Informer::from_stream(stream, "ConfigMap".into(), &shutdown);
    let send = |event| events.unbounded_send(Ok(event)).unwrap();
    let (early, late) = (Seen::default(), Seen::default());
    let _early = informer.on(note(&early));
    send(Event::Apply(object("a", "1", 1)));
    send(Event::Apply(object("b", "2", 2)));
    settle().await;
    assert_eq!(take(&early), ["+a@1", "+b@2"]);

    let _late = informer.on(note(&late));
    send(Event::Apply(object("a", "1", 3)));
    send(Event::Delete(object("b", "2", 4)));
    settle().await;
    assert_eq!(take(&early), ["~a@3", "-b@4"]);
    assert_eq!(take(&late), ["+a@1", "+b@2", "~a@3", "-b@4"]);

    // What is left is told after the end, too.
    send(Event::Apply(object("c", "3", 5)));
    drop(events);
    settle().await;
    assert_eq!(
        (take(&early), take(&late)),
        (vec!["+c@5".into()], vec!["+c@5".into()])
    );
    let after = Seen::default();
    let _after = informer.on(note(&after));
    settle().await;
    assert_eq!(take(&after), ["+a@3", "+c@5"]);
}

#[test]
fn what_a_late_handler_was_told_as_stored_does_not_merge_with_what_follows() {
    let store = Store::new();
    let (early, late) = (Seen::default(), Seen::default());
    let (_early, dispatcher) = store.add_handler(Box::new(note(&early)));
    store.apply(Event::Apply(object("a", "1", 1)));
    store.apply(Event::Apply(object("b", "2", 1)));
    let (_late, none) = store.add_handler(Box::new(note(&late)));
    assert!(none.is_none(), "one dispatcher for all");
    store.apply(Event::Apply(object("a", "1", 2)));
    store.apply(Event::Apply(object("a", "1", 3)));
    store.apply(Event::Delete(object("b", "2", 4)));
    store.close();
    futures::executor::block_on(dispatcher.unwrap().run());
    assert_eq!(take(&early), ["+a@1", "+b@1", "~a@3", "-b@4"]);
    assert_eq!(take(&late), ["+a@1", "+b@1", "~a@3", "-b@4"]);
}

#[tokio::test]
async fn a_dropped_subscription_ends_and_lets_go_of_its_handler() {
    let shutdown = Shutdown::new();
    let (events, stream) = futures::channel::mpsc::unbounded();
    let informer = Informer::from_stream(stream, "ConfigMap".into(), &shutdown);
    let (one, other) = (Seen::default(), Seen::default());
    let first = informer.on(note(&one));
    let _second = informer.on(note(&other));
    settle().await;
    assert_eq!(Arc::strong_count(&one), 2);
    drop(first);
    settle().await;
    assert_eq!(Arc::strong_count(&one), 1);
    events
        .unbounded_send(Ok(Event::Apply(object("a", "1", 1))))
        .unwrap();
    settle().await;
    assert_eq!((take(&one).len(), take(&other).len()), (0, 1));
}
