//! Answers of a plugin that are still good.
//!
//! Pure: the caller says what time it is. Upstream: `getCachedCredentials`, `pkg/credentialprovider/plugin/plugin.go`, v1.37.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::protocol::AuthConfig;

/// How often what is over is thrown away. Upstream: `cachePurgeInterval`.
const PURGE_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// The most answers that are kept; the one that ends first goes. Source: ours, as pods choose the names of images.
const ENTRIES_MAX: usize = 4096;

/// Which images an answer is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `domain/path`.
    Image(String),
    /// The domain, with its port.
    Registry(String),
    Global,
}

/// Whose token the plugin saw. Upstream: `generateServiceAccountCacheKey`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AccountKey {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Those the plugin asks for.
    pub annotations: BTreeMap<String, String>,
    /// With cache type `Token` alone.
    pub token_hash: Option<String>,
}

/// Credentials by what they open.
pub type Auth = Arc<BTreeMap<String, AuthConfig>>;

struct Entry {
    auth: Auth,
    expires_at: Instant,
}

/// One plugin's.
pub struct Cache {
    entries: HashMap<(Scope, Option<AccountKey>), Entry>,
    purged: Instant,
}

/// The host of `domain/path`, with its port.
pub fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or_default()
}

impl Cache {
    pub fn new(now: Instant) -> Self {
        Self {
            entries: HashMap::new(),
            purged: now,
        }
    }

    /// What is known for the image: of the image itself, else of its registry, else of everything.
    pub fn get(&mut self, image: &str, account: Option<&AccountKey>, now: Instant) -> Option<Auth> {
        if now > self.purged + PURGE_INTERVAL {
            self.purge(now);
        }
        let scopes = [
            Scope::Image(image.to_owned()),
            Scope::Registry(registry(image).to_owned()),
            Scope::Global,
        ];
        scopes.into_iter().find_map(|scope| {
            let entry = self.entries.get(&(scope, account.cloned()))?;
            (now <= entry.expires_at).then(|| entry.auth.clone())
        })
    }

    /// `duration`: how long it is good; zero: it is not kept.
    pub fn put(
        &mut self,
        scope: Scope,
        account: Option<AccountKey>,
        auth: Auth,
        duration: Duration,
        now: Instant,
    ) {
        // A time that no clock reaches is as good as none that is kept.
        let expires_at = now.checked_add(duration);
        let Some(expires_at) = expires_at.filter(|_| !duration.is_zero()) else {
            return;
        };
        let key = (scope, account);
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&key) {
            self.purge(now);
            self.make_room();
        }
        self.entries.insert(key, Entry { auth, expires_at });
    }

    fn purge(&mut self, now: Instant) {
        self.entries.retain(|_, entry| now <= entry.expires_at);
        self.purged = now;
    }

    fn make_room(&mut self) {
        while self.entries.len() >= ENTRIES_MAX {
            let first = self.entries.iter().min_by_key(|(_, e)| e.expires_at);
            let Some(key) = first.map(|(key, _)| key.clone()) else {
                return;
            };
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(password: &str) -> Auth {
        let one = AuthConfig {
            username: "u".into(),
            password: password.into(),
        };
        Arc::new([("r.io".to_owned(), one)].into())
    }

    fn account(uid: &str, token: Option<&str>) -> AccountKey {
        AccountKey {
            namespace: "n".into(),
            name: "a".into(),
            uid: uid.into(),
            annotations: [("k".to_owned(), "v".to_owned())].into(),
            token_hash: token.map(str::to_owned),
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn by_image_then_registry_then_global_until_it_ends() {
        let now = Instant::now();
        let mut cache = Cache::new(now);
        let image = Scope::Image("r.io:5/a".into());
        cache.put(Scope::Global, None, auth("global"), 3 * MINUTE, now);
        cache.put(
            Scope::Registry("r.io:5".into()),
            None,
            auth("registry"),
            2 * MINUTE,
            now,
        );
        cache.put(image, None, auth("image"), MINUTE, now);
        let mut check = |image: &str, after: Duration, expect: Option<&str>| {
            let found = cache.get(image, None, now + after);
            assert_eq!(found, expect.map(auth), "{image} {after:?}");
        };
        check("r.io:5/a", MINUTE, Some("image"));
        check("r.io:5/a/b", MINUTE, Some("registry"));
        check("r.io/a", MINUTE, Some("global"));
        check(
            "r.io:5/a",
            MINUTE + Duration::from_nanos(1),
            Some("registry"),
        );
        check(
            "r.io:5/a",
            2 * MINUTE + Duration::from_nanos(1),
            Some("global"),
        );
        check("r.io:5/a", 4 * MINUTE, None);
    }

    #[test]
    fn nothing_is_kept_for_no_time() {
        let now = Instant::now();
        let mut cache = Cache::new(now);
        cache.put(Scope::Global, None, auth("x"), Duration::ZERO, now);
        assert_eq!(cache.get("r.io/a", None, now), None);
    }

    #[test]
    fn each_account_has_its_own() {
        let now = Instant::now();
        let mut cache = Cache::new(now);
        let mine = account("1", Some("t"));
        cache.put(Scope::Global, Some(mine.clone()), auth("x"), MINUTE, now);
        assert!(cache.get("r.io/a", Some(&mine), now).is_some());
        let mut annotated = mine.clone();
        annotated.annotations.insert("k".into(), "w".into());
        let others = [
            Some(account("2", Some("t"))),
            Some(account("1", Some("s"))),
            Some(account("1", None)),
            Some(annotated),
            None,
        ];
        for other in others {
            assert_eq!(cache.get("r.io/a", other.as_ref(), now), None, "{other:?}");
        }
    }

    #[test]
    fn bounded_and_purged() {
        let now = Instant::now();
        let mut cache = Cache::new(now);
        for i in 0..u32::try_from(ENTRIES_MAX).unwrap() + 3 {
            let image = Scope::Image(format!("r.io/{i}"));
            cache.put(
                image,
                None,
                auth("x"),
                MINUTE + Duration::from_secs(i.into()),
                now,
            );
        }
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        assert_eq!(cache.get("r.io/2", None, now), None);
        assert!(cache.get("r.io/3", None, now).is_some());
        let later = now + PURGE_INTERVAL + Duration::from_secs(1);
        cache.get("r.io/3", None, later);
        let left = cache.entries.values().all(|e| e.expires_at >= later);
        assert!(left && cache.entries.len() < ENTRIES_MAX);
    }
}
