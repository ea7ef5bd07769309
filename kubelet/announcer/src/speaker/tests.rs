//! What is said and answered, by frames that are read again.

use super::*;
use crate::packet::parse;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 9]);
const A: &str = "192.0.2.1";
const SIX: &str = "fd00::1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn link(index: u32) -> Link {
    Link {
        index,
        name: format!("eth{index}"),
        mac: OURS,
        running: true,
        addresses: vec![
            "192.0.2.11/24".parse().unwrap(),
            "fe80::11/64".parse().unwrap(),
        ],
    }
}

fn hold(addresses: &[&str]) -> BTreeMap<IpAddr, BTreeSet<u32>> {
    addresses
        .iter()
        .map(|a| (ip(a), BTreeSet::from([1])))
        .collect()
}

fn speaker(addresses: &[&str]) -> Speaker {
    let mut speaker = Speaker::default();
    speaker.set_links(&[link(1), link(2)], ms(0));
    speaker.set(hold(addresses), true, ms(0));
    speaker
}

fn said(frames: &[Outgoing]) -> Vec<(u32, Heard)> {
    frames
        .iter()
        .map(|(link, frame)| (*link, parse(frame).unwrap()))
        .collect()
}

fn claim(address: &str, mac: Mac) -> Heard {
    Heard::Claims {
        address: ip(address),
        mac,
    }
}

fn question(address: &str, from: &str, mac: Mac) -> Heard {
    Heard::Asks {
        target: ip(address),
        from: ip(from),
        mac,
    }
}

#[test]
fn a_takeover_is_announced_at_once_and_again() {
    let mut speaker = speaker(&[A, SIX]);
    let first = said(&speaker.due(ms(0)));
    // A request and a reply of ARP, one advertisement.
    assert_eq!(
        first,
        [
            (1, claim(A, OURS)),
            (1, claim(A, OURS)),
            (1, claim(SIX, OURS))
        ]
    );
    let mut times = vec![];
    let mut now = ms(0);
    while now < Duration::from_secs(40) {
        now = speaker.wake().unwrap();
        assert!(!speaker.due(now).is_empty());
        times.push(now.as_millis());
    }
    assert_eq!(times, [200, 600, 1500, 3000, 6000, 36_000, 66_000]);
    // What stays is no news.
    speaker.set(hold(&[A, SIX]), true, now);
    assert!(speaker.due(now).is_empty());
    // A link with another address is.
    let mut other = link(1);
    other.mac = THEIRS;
    speaker.set_links(&[other], now);
    assert_eq!(said(&speaker.due(now))[0], (1, claim(A, THEIRS)));
}

#[test]
fn questions_for_held_addresses_are_answered_on_their_links() {
    let mut speaker = speaker(&[A, SIX]);
    let answer = speaker
        .hear(1, question(A, "192.0.2.50", THEIRS), ms(5))
        .unwrap();
    assert_eq!(answer.1[..6], THEIRS.0);
    assert_eq!(said(&[answer]), [(1, claim(A, OURS))]);
    let answer = speaker
        .hear(1, question(SIX, "fe80::50", THEIRS), ms(5))
        .unwrap();
    assert_eq!(said(&[answer]), [(1, claim(SIX, OURS))]);
    // Another address, another link, our own question, families that do not fit.
    for (link, heard) in [
        (1, question("192.0.2.2", "192.0.2.50", THEIRS)),
        (2, question(A, "192.0.2.50", THEIRS)),
        (3, question(A, "192.0.2.50", THEIRS)),
        (1, question(A, "192.0.2.50", OURS)),
        (1, question(A, "fe80::50", THEIRS)),
    ] {
        assert_eq!(speaker.hear(link, heard, ms(5)), None, "{heard:?}");
    }
}

#[test]
fn who_is_sure_contradicts() {
    let mut speaker = speaker(&[A]);
    while speaker.wake().unwrap() < ms(10_000) {
        let at = speaker.wake().unwrap();
        speaker.due(at);
    }
    let now = ms(10_000);
    assert_eq!(speaker.hear(1, claim(A, THEIRS), now), None);
    assert_eq!(
        said(&speaker.due(now)),
        [(1, claim(A, OURS)), (1, claim(A, OURS))]
    );
    // Not more than once a second, and not to itself.
    speaker.hear(1, claim(A, THEIRS), now + ms(500));
    assert!(speaker.due(now + ms(500)).is_empty());
    speaker.hear(1, claim(A, THEIRS), now + ms(1000));
    assert!(!speaker.due(now + ms(1000)).is_empty());
    speaker.hear(1, claim(A, OURS), now + ms(9000));
    assert!(speaker.due(now + ms(9000)).is_empty());
}

#[test]
fn who_asks_in_an_addresss_name_is_contradicted_and_not_given_way_to() {
    let mut speaker = speaker(&[A, SIX]);
    while speaker.wake().unwrap() < ms(10_000) {
        let at = speaker.wake().unwrap();
        speaker.due(at);
    }
    let now = ms(10_000);
    let asks = question("192.0.2.254", A, THEIRS);
    assert_eq!(speaker.hear(1, asks, now), None);
    assert_eq!(
        said(&speaker.due(now)),
        [(1, claim(A, OURS)), (1, claim(A, OURS))]
    );
    // On another link, and from this node itself, it says nothing.
    for (link, mac) in [(2, THEIRS), (1, OURS)] {
        speaker.hear(link, question("fd00::fe", SIX, mac), now);
        assert!(speaker.due(now).is_empty());
    }
    speaker.hear(1, question("fd00::fe", SIX, THEIRS), now);
    assert_eq!(said(&speaker.due(now)), [(1, claim(SIX, OURS))]);
    speaker.set(hold(&[A, SIX]), false, now);
    speaker.hear(1, question("192.0.2.254", A, THEIRS), now + ms(5000));
    assert_eq!(speaker.announced().count(), 2);
}

#[test]
fn who_is_not_sure_answers_asks_and_gives_way() {
    let mut speaker = speaker(&[A, SIX]);
    speaker.due(ms(0));
    let now = ms(2000);
    speaker.set(hold(&[A, SIX]), false, now);
    let asked = said(&speaker.due(now));
    let asks_a = question(A, "0.0.0.0", OURS);
    let asks_six = question(SIX, "fe80::11", OURS);
    assert_eq!(asked, [(1, asks_a), (1, asks_six)]);
    assert_eq!(speaker.wake(), Some(now + PROBE));
    // Nobody else says it has it: an API server that is away takes no address down.
    assert!(
        speaker
            .hear(1, question(A, "192.0.2.50", THEIRS), now)
            .is_some()
    );
    speaker.hear(1, claim(A, THEIRS), now);
    assert_eq!(
        speaker.hear(1, question(A, "192.0.2.50", THEIRS), now),
        None
    );
    assert_eq!(speaker.announced().count(), 1);
    // Neither that nor anything new is begun before it is sure.
    speaker.set(hold(&[A, SIX, "192.0.2.2"]), false, now);
    assert_eq!(speaker.announced().count(), 1);
    speaker.set(hold(&[A, SIX]), true, now);
    assert_eq!(speaker.announced().count(), 2);
    assert!(said(&speaker.due(now)).contains(&(1, claim(A, OURS))));
}

#[test]
fn what_is_held_no_more_is_not_spoken_of() {
    let mut speaker = speaker(&[A]);
    speaker.set(hold(&[]), true, ms(0));
    assert_eq!((speaker.wake(), speaker.due(ms(0)).len()), (None, 0));
    assert_eq!(
        speaker.hear(1, question(A, "192.0.2.50", THEIRS), ms(0)),
        None
    );
}

#[test]
fn groups_of_questions() {
    let group: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
    // Two addresses of one group are one membership.
    let speaker = speaker(&[A, SIX, "fd00::2:0:1"]);
    assert_eq!(speaker.groups(), BTreeSet::from([(1, group)]));
}
