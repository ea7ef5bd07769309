use std::sync::atomic::{AtomicUsize, Ordering};

use framework::testing::{PodBuilder, make_node, make_pod};
use framework::*;
use k8s_openapi::api::core::v1::Pod;

use super::*;

struct Test;
impl Plugin for Test {
    fn name(&self) -> &'static str {
        "Test"
    }
    fn as_queue_sort(&self) -> Option<&dyn QueueSortPlugin> {
        Some(self)
    }
    fn as_pre_enqueue(&self) -> Option<&dyn PreEnqueuePlugin> {
        Some(self)
    }
}
impl QueueSortPlugin for Test {
    fn less(&self, a: &QueuedPod<'_>, b: &QueuedPod<'_>) -> bool {
        a.pod.priority > b.pod.priority
            || (a.pod.priority == b.pod.priority && a.timestamp < b.timestamp)
    }
}
impl PreEnqueuePlugin for Test {
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status {
        let gates = pod
            .spec
            .as_ref()
            .and_then(|s| s.scheduling_gates.as_ref())
            .map_or(0, Vec::len);
        if gates == 0 {
            Status::success()
        } else {
            Status::unresolvable("waiting for scheduling gates")
        }
    }
}

struct Clock(Mutex<Instant>);

fn queue() -> (SchedulingQueue, Arc<Clock>) {
    let clock = Arc::new(Clock(Mutex::new(Instant::now())));
    let reader = Arc::clone(&clock);
    let now = Arc::new(move || *reader.0.lock().unwrap());
    let mut config = QueueConfig::new(Arc::new(Test), now);
    let queue_if_named = |_: &Arc<Pod>, _: Option<&EventObject>, new: Option<&EventObject>| {
        let name = new
            .and_then(EventObject::node)
            .and_then(|n| n.metadata.name.as_deref());
        if name == Some("good") {
            QueueingHint::Queue
        } else {
            QueueingHint::QueueSkip
        }
    };
    let hints = vec![
        (
            "Fit",
            ClusterEventWithHint::with_hint(EventResource::Node, ActionType::ADD, queue_if_named),
        ),
        (
            "Fit",
            ClusterEventWithHint::always(EventResource::Pod, ActionType::DELETE),
        ),
        (
            "Test",
            ClusterEventWithHint::always(
                EventResource::Pod,
                ActionType::UPDATE_POD_SCHEDULING_GATES_ELIMINATED,
            ),
        ),
        (
            "Waiter",
            ClusterEventWithHint::always(EventResource::Node, ActionType::DELETE),
        ),
    ];
    let profile = ProfileQueueing {
        pre_enqueue: vec![Arc::new(Test)],
        hints,
    };
    config
        .live
        .profiles
        .insert("default-scheduler".to_owned(), Arc::new(profile));
    (SchedulingQueue::new(config), clock)
}

impl Clock {
    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

fn pod(name: &str) -> PodBuilder {
    make_pod(name).uid(name)
}

fn names(queue: &SchedulingQueue) -> Vec<String> {
    std::iter::from_fn(|| queue.try_pop())
        .map(|q| q.pod.name().to_owned())
        .collect()
}

fn node(name: &str) -> Option<EventObject> {
    Some(EventObject::Node(make_node(name).build()))
}

const NODE_ADD: ClusterEvent = ClusterEvent::new(EventResource::Node, ActionType::ADD);

fn fail(queue: &SchedulingQueue, plugin: Option<&'static str>) {
    let mut popped = queue.try_pop().expect("a pod is there");
    popped.unschedulable_plugins = plugin.into_iter().collect();
    queue.add_unschedulable_if_not_present(popped);
}

#[test]
fn pods_leave_by_priority_then_age_and_only_once() {
    let (queue, clock) = queue();
    for (name, priority) in [("low", 0), ("high", 10), ("low-later", 0)] {
        queue.add(pod(name).priority(priority).info());
        clock.advance(Duration::from_millis(1));
    }
    queue.add(pod("low").info());
    queue.delete("low-later");
    assert_eq!(names(&queue), ["high", "low"]);
    queue.close();
    assert!(queue.pop().is_none());
}

#[test]
fn an_event_brings_back_only_pods_whose_rejector_is_hinted() {
    let (queue, clock) = queue();
    queue.add(pod("p").info());
    fail(&queue, Some("Fit"));
    assert_eq!(queue.counts().unschedulable, 1);
    clock.advance(Duration::from_secs(5));
    queue.move_all_to_active_or_backoff_queue(NODE_ADD, None, node("bad"), None);
    queue.move_all_to_active_or_backoff_queue(
        ClusterEvent::new(EventResource::Node, ActionType::DELETE),
        None,
        node("good"),
        None,
    );
    assert_eq!(
        (names(&queue).len(), queue.rejected_by()),
        (0, vec![("Fit", 1)])
    );
    queue.move_all_to_active_or_backoff_queue(NODE_ADD, None, node("good"), None);
    assert_eq!(
        (queue.counts().active, names(&queue)),
        (1, vec!["p".to_owned()])
    );
}

#[test]
fn backoff_doubles_and_a_pod_in_it_is_popped_when_nothing_else_is_there() {
    let (queue, clock) = queue();
    queue.add(pod("p").info());
    for expect_seconds in [1, 2, 4, 8, 10, 10] {
        fail(&queue, Some("Fit"));
        queue.move_all_to_active_or_backoff_queue(
            ClusterEvent::ASSIGNED_POD_DELETE,
            None,
            None,
            None,
        );
        assert_eq!(queue.counts().backoff, 1);
        clock.advance(Duration::from_secs(expect_seconds));
        queue.flush_backoff_queue_completed();
        assert_eq!(queue.counts().active, 0, "{expect_seconds}");
        clock.advance(Duration::from_secs(1));
        queue.flush_backoff_queue_completed();
        assert_eq!(queue.counts().active, 1, "{expect_seconds}");
    }
    fail(&queue, Some("Fit"));
    queue.move_all_to_active_or_backoff_queue(ClusterEvent::ASSIGNED_POD_DELETE, None, None, None);
    assert_eq!(names(&queue), ["p"], "popped from backoff");
}

#[test]
fn an_error_backs_off_and_is_not_popped_early() {
    let (queue, clock) = queue();
    queue.add(pod("p").info());
    fail(&queue, None);
    assert_eq!(
        (queue.counts().backoff, queue.try_pop().is_none()),
        (1, true)
    );
    clock.advance(Duration::from_secs(2));
    queue.flush_backoff_queue_completed();
    assert_eq!(names(&queue), ["p"]);
}

#[test]
fn events_while_in_flight_are_not_lost() {
    let (queue, _) = queue();
    queue.add(pod("p").info());
    queue.add(pod("other").info());
    let mut p = queue.try_pop().expect("p");
    let other = queue.try_pop().expect("other");
    queue.move_all_to_active_or_backoff_queue(NODE_ADD, None, node("good"), None);
    queue.done(&other.pod.uid);
    assert_eq!(queue.counts().in_flight_events, 1, "p still needs it");
    p.unschedulable_plugins.insert("Fit");
    queue.add_unschedulable_if_not_present(p);
    assert_eq!(
        (
            queue.counts().backoff,
            queue.counts().unschedulable,
            queue.counts().in_flight_events
        ),
        (1, 0, 0)
    );

    let mut p = queue.try_pop().expect("p");
    queue.move_all_to_active_or_backoff_queue(NODE_ADD, None, node("bad"), None);
    p.unschedulable_plugins.insert("Fit");
    queue.add_unschedulable_if_not_present(p);
    assert_eq!(queue.counts().unschedulable, 1);
}

#[test]
fn a_pending_plugin_skips_backoff() {
    let (queue, _) = queue();
    queue.add(pod("p").info());
    let mut p = queue.try_pop().expect("p");
    p.pending_plugins.insert("Waiter");
    queue.add_unschedulable_if_not_present(p);
    queue.move_all_to_active_or_backoff_queue(
        ClusterEvent::new(EventResource::Node, ActionType::DELETE),
        node("x"),
        None,
        None,
    );
    assert_eq!(queue.counts().active, 1);
}

#[test]
fn gated_pods_wait_until_their_gates_are_gone() {
    let (queue, clock) = queue();
    let gated = pod("p").scheduling_gate("g").info();
    queue.add(Arc::clone(&gated));
    assert_eq!(
        (
            queue.counts().gated,
            queue.counts().unschedulable,
            queue.try_pop().is_none()
        ),
        (1, 0, true)
    );
    queue.move_all_to_active_or_backoff_queue(ClusterEvent::ASSIGNED_POD_DELETE, None, None, None);
    clock.advance(Duration::from_secs(400));
    queue.flush_unschedulable_pods_leftover();
    queue.activate(["p"]);
    assert_eq!(queue.counts().gated, 1);
    queue.update(&gated, pod("p").info());
    assert_eq!(
        (queue.counts().gated, names(&queue)),
        (0, vec!["p".to_owned()])
    );
}

#[test]
fn a_pod_waits_five_minutes_at_most() {
    let (queue, clock) = queue();
    queue.add(pod("p").info());
    fail(&queue, Some("Fit"));
    clock.advance(Duration::from_secs(300));
    queue.flush_unschedulable_pods_leftover();
    assert_eq!(queue.counts().unschedulable, 1);
    clock.advance(Duration::from_secs(1));
    queue.flush_unschedulable_pods_leftover();
    let popped = queue.try_pop().expect("flushed");
    assert!(popped.was_flushed_from_unschedulable && popped.attempts == 2);
}

#[test]
fn nominations_follow_the_pod() {
    let (queue, _) = queue();
    let nominator = queue.nominator();
    let p = pod("p").nominated_node_name("a").info();
    queue.add(Arc::clone(&p));
    assert_eq!(nominator.pods_for_node("a").len(), 1);
    nominator.add(&p, &NominatingInfo::Override("b".to_owned()));
    assert_eq!(
        (
            nominator.pods_for_node("a").len(),
            nominator.node_of("p").as_deref()
        ),
        (0, Some("b"))
    );
    let plain = pod("p").info();
    queue.update(&plain, Arc::clone(&plain));
    assert_eq!(
        nominator.node_of("p").as_deref(),
        Some("b"),
        "kept: the write is under way"
    );
    nominator.add(&p, &NominatingInfo::Override(String::new()));
    assert!(nominator.is_empty());
    queue.add(pod("q").nominated_node_name("a").info());
    queue.delete("q");
    assert!(nominator.is_empty());
}

#[test]
fn who_polls_is_woken_by_a_pod_and_by_the_end() {
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (queue, _) = queue();
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = std::task::Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    assert!(queue.poll_pop(&mut context).is_pending());
    queue.add(pod("a").info());
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    let Poll::Ready(Some(popped)) = queue.poll_pop(&mut context) else {
        panic!("there is a pod");
    };
    assert_eq!(popped.pod.name(), "a");
    assert!(queue.poll_pop(&mut context).is_pending());
    queue.close();
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    assert!(matches!(queue.poll_pop(&mut context), Poll::Ready(None)));
}

#[test]
fn pods_that_wait_are_told_of_with_their_part() {
    let (queue, clock) = queue();
    queue.add(pod("rejected").info());
    fail(&queue, Some("Fit"));
    queue.add(pod("broken").info());
    fail(&queue, None);
    queue.add(pod("gated").scheduling_gate("g").info());
    for i in 0..5 {
        queue.add(pod(&format!("new-{i}")).info());
    }
    *clock.0.lock().unwrap() += Duration::from_secs(3);
    let told = |most| {
        let mut told: Vec<String> = queue
            .waiting(most)
            .into_iter()
            .map(|w| {
                let (name, queued) = (w.pod.name().to_owned(), w.queued);
                let by = queued.gated_by.into_iter().chain(queued.rejected_by);
                let by: BTreeSet<_> = by.collect();
                let seconds = w.waited.as_secs();
                format!(
                    "{} {name} {} {by:?} {seconds}",
                    queued.place, queued.attempts
                )
            })
            .collect();
        told.sort();
        told
    };
    let all = told(10);
    assert_eq!(all.len(), 8, "{all:?}");
    for line in [
        "active new-0 0 {} 3",
        "backoff broken 1 {} 3",
        "gated gated 0 {\"Test\"} 3",
        "unschedulable rejected 1 {\"Fit\"} 3",
    ] {
        assert!(all.iter().any(|told| told == line), "{line} in {all:?}");
    }
    // Two of those that are active, the others are no more than that.
    assert_eq!(told(2).len(), 5);
}
