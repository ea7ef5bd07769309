use super::*;

/// A header's block, with a right checksum.
fn block(dialect: &[u8], kind: u8, name: &str, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..257 + dialect.len()].copy_from_slice(dialect);
    sum(&mut block);
    block
}

fn sum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

const USTAR: &[u8] = b"ustar\x0000";
const GNU: &[u8] = b"ustar  \0";

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(BLOCK), 0);
    padded
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        bytes.extend(format!("{length} {key}={value}\n").into_bytes());
    }
    let mut all = block(USTAR, b'x', "pax", bytes.len()).to_vec();
    all.extend(padded(&bytes));
    all
}

/// The first entry and its content, holes filled.
fn read(bytes: &[u8]) -> Result<(Header, Vec<u8>), TarError> {
    let mut stream = TarStream::new(bytes);
    let header = stream.next()?.expect("an entry");
    let mut content = vec![0; header.size as usize];
    let mut buffer = [0; 100];
    while let Some((at, count)) = stream.data(&mut buffer)? {
        content[at as usize..at as usize + count].copy_from_slice(&buffer[..count]);
    }
    assert!(stream.next()?.is_none());
    Ok((header, content))
}

fn check(bytes: &[u8], name: &str, content: &[u8]) {
    let (header, found) = read(bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&header.name), name);
    assert_eq!(found, content);
}

#[test]
fn dialects() {
    let with = |block: [u8; BLOCK]| [&block[..], &padded(b"text")].concat();
    check(&with(block(b"", b'0', "v7", 4)), "v7", b"text");
    check(&with(block(USTAR, 0, "ustar", 4)), "ustar", b"text");
    let mut prefixed = block(USTAR, b'0', "file", 4);
    prefixed[345..348].copy_from_slice(b"dir");
    sum(&mut prefixed);
    check(&with(prefixed), "dir/file", b"text");
    let long = "long/".repeat(40) + "file";
    let mut gnu = block(GNU, b'L', "././@LongLink", long.len() + 1).to_vec();
    gnu.extend(padded(format!("{long}\0").as_bytes()));
    gnu.extend(with(block(GNU, b'0', "cut", 4)));
    check(&gnu, &long, b"text");
    let mut with_pax = pax(&[("path", &long), ("mtime", "12.5"), ("uid", "3000000")]);
    with_pax.extend(with(block(USTAR, b'0', "cut", 4)));
    check(&with_pax, &long, b"text");
    let (header, _) = read(&with_pax).unwrap();
    assert_eq!(
        (header.mtime.seconds, header.mtime.nanoseconds),
        (12, 500_000_000)
    );
    assert_eq!(header.uid, 3_000_000);
    // A directory of old archives is told by its slash.
    let (header, _) = read(&block(b"", 0, "dir/", 0)).unwrap();
    assert_eq!(header.kind, Kind::Directory);
    // Base 256.
    let mut large = block(GNU, b'0', "x", 0);
    large[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]);
    sum(&mut large);
    assert_eq!(read(&large).unwrap().0.uid, 3_000_000);
}

#[test]
fn sparse_files() {
    let content = [&b"head"[..], &[0; 96], b"tail", &[0; 20]].concat();
    let data = padded(b"headtail");
    let mut one = pax(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "own/name"),
        ("GNU.sparse.realsize", "124"),
    ]);
    one.extend(block(USTAR, b'0', "GNUSparseFile.1/name", 520));
    one.extend(padded(b"2\n0\n4\n100\n4\n"));
    one.extend(&data);
    check(&one, "own/name", &content);
    let mut zero_one = pax(&[
        ("GNU.sparse.size", "124"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.map", "0,4,100,4"),
        ("GNU.sparse.name", "own/name"),
    ]);
    zero_one.extend(block(USTAR, b'0', "GNUSparseFile.1/name", 8));
    zero_one.extend(&data);
    check(&zero_one, "own/name", &content);
    let mut zero_zero = pax(&[
        ("GNU.sparse.size", "124"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "0"),
        ("GNU.sparse.numbytes", "4"),
        ("GNU.sparse.offset", "100"),
        ("GNU.sparse.numbytes", "4"),
    ]);
    zero_zero.extend(block(USTAR, b'0', "name", 8));
    zero_zero.extend(&data);
    check(&zero_zero, "name", &content);
    let mut old = block(GNU, b'S', "name", 8);
    for (index, number) in [0, 4, 100, 4].into_iter().enumerate() {
        let at = 386 + index * 12;
        old[at..at + 11].copy_from_slice(format!("{number:011o}").as_bytes());
    }
    old[483..494].copy_from_slice(format!("{:011o}", 124).as_bytes());
    sum(&mut old);
    check(&[&old[..], &data].concat(), "name", &content);
}

#[test]
fn what_is_remembered_is_bounded() {
    let large = (MAX_SPECIAL_BYTES + 1) as usize;
    for kind in [b'x', b'g', b'L', b'K'] {
        let mut bytes = block(GNU, kind, "large", large).to_vec();
        bytes.extend(vec![b'x'; large]);
        let found = read(&bytes);
        assert!(matches!(found, Err(TarError::TooLong { .. })), "{found:?}");
    }
    // A map of a million entries.
    let map = format!("1000000\n{}", "1\n0\n".repeat(1_000_000));
    let mut sparse = pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]);
    sparse.extend(block(USTAR, b'0', "x", map.len()));
    sparse.extend(padded(map.as_bytes()));
    assert!(matches!(read(&sparse), Err(TarError::TooLong { .. })));
    // A map that says more than the file holds, or goes backwards.
    for map in ["0,4,2,4", "0,4,200,4", "0,9223372036854775807,1,1"] {
        let mut sparse = pax(&[
            ("GNU.sparse.size", "124"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.map", map),
        ]);
        sparse.extend(block(USTAR, b'0', "x", 8));
        sparse.extend(padded(b"headtail"));
        assert!(read(&sparse).is_err(), "{map}");
    }
}

#[test]
fn broken_archives() {
    let mut bytes = block(USTAR, b'0', "x", 0);
    bytes[0] = b'y';
    assert!(matches!(read(&bytes), Err(TarError::Header(_))));
    let cut = [&block(USTAR, b'0', "x", 600)[..], &[0; 100]].concat();
    assert!(read(&cut).is_err());
    for records in ["7 a=b\n", "3 a\n", "999999 a=b\n", "-6 a=b\n", "x a=b\n"] {
        let mut bytes = block(USTAR, b'x', "pax", records.len()).to_vec();
        bytes.extend(padded(records.as_bytes()));
        bytes.extend(block(USTAR, b'0', "x", 0));
        assert!(read(&bytes).is_err(), "{records:?}");
    }
}

#[test]
fn times() {
    let time = |text| pax_time(text).map(|time| (time.seconds, time.nanoseconds));
    assert_eq!(time("12"), Some((12, 0)));
    assert_eq!(time("12.5"), Some((12, 500_000_000)));
    assert_eq!(time("12.0000000019"), Some((12, 1)));
    assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
    assert_eq!(time("x"), None);
    assert_eq!(time("1.x"), None);
    assert_eq!(Time::seconds(-1).bounded(), Time::default());
    assert_eq!(Time::seconds(i64::MAX).bounded(), Time::default());
}
