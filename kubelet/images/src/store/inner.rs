//! What changes records, and what keeps layers from garbage collection meanwhile.

use std::path::Path;

use super::*;
use crate::unpack::Compression;

impl Inner {
    pub(super) fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lower_dirs(&self, layers: &[String]) -> Vec<PathBuf> {
        if layers.is_empty() {
            return vec![self.layout.empty_fs()];
        }
        layers
            .iter()
            .rev()
            .map(|chain_id| self.layout.layer_fs(chain_id))
            .collect()
    }

    /// Whether the layer is unpacked.
    pub(crate) fn has_layer(&self, chain_id: &str) -> bool {
        self.state().layers.contains_key(chain_id)
    }

    /// One at a time for each key: whoever gets the permit looks first whether another did the work.
    pub(crate) async fn flight(&self, key: &str) -> OwnedSemaphorePermit {
        let semaphore = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            flights
                .entry(key.to_owned())
                .or_insert_with(|| Arc::new(Semaphore::new(1)))
                .clone()
        };
        semaphore
            .acquire_owned()
            .await
            .expect("no flight's semaphore is ever closed")
    }

    /// Protects these digests and chain ids from garbage collection until dropped.
    pub(crate) fn lease(self: &Arc<Self>, keys: impl IntoIterator<Item = String>) -> Lease {
        let keys: Vec<String> = keys.into_iter().collect();
        let mut state = self.state();
        for key in &keys {
            *state.leases.entry(key.clone()).or_insert(0) += 1;
        }
        drop(state);
        Lease {
            inner: self.clone(),
            keys,
        }
    }

    /// A downloaded layer that is not needed any more once its last lease ends.
    pub(crate) fn mark_spent(&self, digest: &str) {
        self.state().spent.insert(digest.to_owned());
    }

    /// Keeps a manifest, index or config. The caller has verified it and holds a lease on it.
    pub(crate) fn put_blob(&self, digest: &str, bytes: &[u8]) -> Result<(), ImageStoreError> {
        let path = self.layout.blob(digest);
        if path.exists() {
            return Ok(());
        }
        self.layout
            .write_atomic(&path, bytes)
            .map_err(ImageStoreError::io(format!("writing {}", path.display())))
    }

    /// Waits until a layer may be unpacked; see [`UNPACK_PERMITS`].
    pub(crate) async fn may_unpack(&self, blob: &Path) -> OwnedSemaphorePermit {
        let path = blob.to_owned();
        let compression = blocking(move || {
            let file = std::fs::File::open(path).ok()?;
            Compression::of_file(&file).ok()
        })
        .await;
        let parts = match compression {
            // What cannot be read will be told of by who unpacks it.
            Some(Compression::None | Compression::Gzip) | None => 1,
            Some(Compression::Zstd) => UNPACK_PERMITS,
        };
        self.unpacking
            .clone()
            .acquire_many_owned(parts)
            .await
            .expect("the semaphore is never closed")
    }

    /// Unpacks the layer at `index` of a chain whose lower layers are there already.
    pub(crate) fn install_layer(
        &self,
        chain_ids: &[String],
        index: usize,
        diff_id: &str,
        blob: &Path,
    ) -> Result<(), InstallError> {
        let chain_id = &chain_ids[index];
        let io = |path: &Path| ImageStoreError::io(format!("writing {}", path.display()));
        let parents: Vec<PathBuf> = chain_ids[..index]
            .iter()
            .rev()
            .map(|parent| self.layout.layer_fs(parent))
            .collect();
        let tmp = self.layout.fresh_tmp();
        let fs = tmp.join("fs");
        let target = self.layout.layer(chain_id);
        let result = std::fs::create_dir_all(&fs)
            .map_err(|source| InstallError::Store(io(&fs)(source)))
            .and_then(|()| Ok(unpack_layer(blob, &fs, &parents, diff_id)?))
            .and_then(|unpacked| {
                let record = LayerRecord {
                    version: VERSION,
                    chain_id: chain_id.clone(),
                    diff_id: diff_id.to_owned(),
                    size_bytes: unpacked.size_bytes,
                    inodes: unpacked.inodes,
                };
                let write = || {
                    let json = serde_json::to_vec(&record).map_err(io::Error::other)?;
                    std::fs::write(tmp.join("layer.json"), json)?;
                    self.layout.discard(&target)?;
                    std::fs::rename(&tmp, &target)
                };
                write().map_err(|source| InstallError::Store(io(&target)(source)))?;
                self.state().layers.insert(chain_id.clone(), record);
                Ok(())
            });
        if result.is_err()
            && let Err(error) = crate::layout::remove_any(&tmp)
        {
            tracing::warn!(path = %tmp.display(), %error, "could not clear a failed layer away");
        }
        result
    }

    /// Makes an image known, with the names it has now and those in `record`. A tag moves here from whoever had it.
    pub(crate) fn commit(
        &self,
        mut record: ImageRecord,
        config: Arc<ImageConfiguration>,
    ) -> Result<(), ImageStoreError> {
        let _writer = self.writer();
        let mut losers = Vec::new();
        {
            let state = self.state();
            if let Some(known) = state.images.get(&record.id) {
                record
                    .repo_tags
                    .extend(known.record.repo_tags.iter().cloned());
                record
                    .repo_digests
                    .extend(known.record.repo_digests.iter().cloned());
                record.blobs.extend(known.record.blobs.iter().cloned());
                record.pinned |= known.record.pinned;
                // The same image stands on the same layers.
                if known.record.unsynced_boot.is_none() {
                    record.unsynced_boot = None;
                }
            }
            for names in [
                &mut record.repo_tags,
                &mut record.repo_digests,
                &mut record.blobs,
            ] {
                names.sort();
                names.dedup();
            }
            for known in state
                .images
                .values()
                .filter(|known| known.record.id != record.id)
            {
                let mut other = known.record.clone();
                other
                    .repo_tags
                    .retain(|tag| !record.repo_tags.contains(tag));
                if other.repo_tags != known.record.repo_tags {
                    losers.push(other);
                }
            }
        }
        // The new owner first: a crash between leaves a tag at two images, which opening mends.
        self.write_image(&record)?;
        for loser in &losers {
            self.write_image(loser)?;
        }
        let mut state = self.state();
        for loser in losers {
            if let Some(known) = state.images.get_mut(&loser.id) {
                known.record = loser;
            }
        }
        state
            .images
            .insert(record.id.clone(), Known { record, config });
        Ok(())
    }

    /// Has everything written to the disk, without keeping anybody waiting, and notes it for these images. Until then a
    /// power cut costs them.
    pub(crate) fn sync_later(self: &Arc<Self>, ids: Vec<String>) {
        let (root, weak) = (self.layout.root().to_owned(), Arc::downgrade(self));
        tokio::task::spawn_blocking(move || {
            let synced = std::fs::File::open(&root).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
            let result = synced
                .map_err(ImageStoreError::io(format!("syncing {}", root.display())))
                .and_then(|()| match weak.upgrade() {
                    Some(inner) => ids.iter().try_for_each(|id| inner.mark_synced(id)),
                    None => Ok(()),
                });
            if let Err(error) = result {
                tracing::warn!(%error, "images may not have reached the disk");
            }
        });
    }

    pub(super) fn mark_synced(&self, id: &str) -> Result<(), ImageStoreError> {
        let _writer = self.writer();
        let Some(mut record) = self
            .state()
            .images
            .get(id)
            .map(|known| known.record.clone())
        else {
            return Ok(());
        };
        if record.unsynced_boot.take().is_none() {
            return Ok(());
        }
        self.write_image(&record)?;
        if let Some(known) = self.state().images.get_mut(id) {
            known.record = record;
        }
        Ok(())
    }

    pub(super) fn write_image(&self, record: &ImageRecord) -> Result<(), ImageStoreError> {
        let path = self.layout.image(&record.id);
        self.layout
            .write_json(&path, record)
            .map_err(ImageStoreError::io(format!("writing {}", path.display())))
    }

    /// Whether an image has this name with a digest: its repository served that digest before.
    pub(crate) fn has_digest_name(&self, name: &str) -> bool {
        let state = self.state();
        let mut known = state.images.values();
        known.any(|known| {
            known
                .record
                .repo_digests
                .iter()
                .any(|digest| digest == name)
        })
    }

    /// The image of this id, as it is now.
    pub(crate) fn image(&self, id: &str) -> Option<Image> {
        self.state().images.get(id).map(Known::image)
    }
}

/// Why a layer could not be put in its place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Store(ImageStoreError),
}

/// Protection from garbage collection; see [`Inner::lease`].
pub(crate) struct Lease {
    inner: Arc<Inner>,
    keys: Vec<String>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut spent = Vec::new();
        {
            let mut state = self.inner.state();
            for key in &self.keys {
                let Some(count) = state.leases.get_mut(key) else {
                    continue;
                };
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(key);
                    if state.spent.remove(key) {
                        spent.push(self.inner.layout.ingest_blob(key));
                    }
                }
            }
        }
        for path in spent {
            if let Err(error) = crate::layout::remove_any(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove a downloaded layer");
            }
        }
    }
}
