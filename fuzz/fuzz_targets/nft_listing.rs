//! What `nft --json list` prints.
#![no_main]

gantry_fuzz::target!(
    8 << 20,
    nftables::fuzz::listing_seeds(),
    nftables::fuzz::listing
);
