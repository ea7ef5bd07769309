//! Manifests, indexes, configs, names of images.
#![no_main]

gantry_fuzz::target!(
    4 << 20,
    images::fuzz::document_seeds(),
    images::fuzz::image_documents
);
