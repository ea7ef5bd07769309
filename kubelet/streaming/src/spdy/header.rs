//! Header blocks: names and values, deflated in one stream a direction with the protocol's dictionary.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::SpdyError;

/// What one header block may inflate to. DIFFERS: upstream takes 1000 headers of 1 MiB each.
const MAX_BLOCK_BYTES: usize = 32 * 1024;
/// Upstream: spdystream's `defaultMaxHeaderCount`.
const MAX_HEADERS: u32 = 1000;

/// Headers of a stream: names in lower case, in the order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name, which is given in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| value.split('\0').next())
    }
}

/// Inflates the header blocks of one direction.
pub(super) struct HeaderDecoder {
    zlib: Decompress,
}

impl HeaderDecoder {
    pub(super) fn new() -> Self {
        Self {
            zlib: Decompress::new(true),
        }
    }

    pub(super) fn decode(&mut self, mut input: &[u8]) -> Result<Headers, SpdyError> {
        let mut block = Vec::with_capacity(1024);
        while !input.is_empty() {
            if block.len() == block.capacity() {
                if block.len() >= MAX_BLOCK_BYTES {
                    return Err(SpdyError::Headers("a header block is too large"));
                }
                block.reserve(block.len());
            }
            let (before_in, before_out) = (self.zlib.total_in(), block.len());
            let result = self
                .zlib
                .decompress_vec(input, &mut block, FlushDecompress::Sync);
            let used = (self.zlib.total_in() - before_in) as usize;
            input = &input[used..];
            match result {
                Ok(_)
                    if used == 0 && block.len() == before_out && block.len() < block.capacity() =>
                {
                    return Err(SpdyError::Headers("a header block does not inflate"));
                }
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(DICTIONARY)
                        .map_err(|_| SpdyError::Headers("another dictionary is asked for"))?;
                }
                Err(_) => return Err(SpdyError::Headers("a header block does not inflate")),
            }
        }
        // What is buffered inside may be more than the output had room for.
        loop {
            if block.len() < block.capacity() {
                let before = block.len();
                let _ = self
                    .zlib
                    .decompress_vec(&[], &mut block, FlushDecompress::Sync);
                if block.len() == before {
                    break;
                }
            } else if block.len() >= MAX_BLOCK_BYTES {
                return Err(SpdyError::Headers("a header block is too large"));
            } else {
                block.reserve(block.len().max(1024));
            }
        }
        parse(&block)
    }
}

/// Deflates the header blocks of one direction.
pub(super) struct HeaderEncoder {
    zlib: Compress,
}

impl HeaderEncoder {
    pub(super) fn new() -> Self {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(DICTIONARY)
            .expect("a fresh stream takes a dictionary");
        Self { zlib }
    }

    pub(super) fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = Vec::new();
        let number = |block: &mut Vec<u8>, n: usize| block.extend((n as u32).to_be_bytes());
        number(&mut block, headers.0.len());
        for (name, value) in &headers.0 {
            number(&mut block, name.len());
            block.extend(name.to_ascii_lowercase().as_bytes());
            number(&mut block, value.len());
            block.extend(value.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 64);
        let mut input = &block[..];
        loop {
            let before = self.zlib.total_in();
            self.zlib
                .compress_vec(input, &mut packed, FlushCompress::Sync)
                .expect("deflating to memory does not fail");
            input = &input[(self.zlib.total_in() - before) as usize..];
            if input.is_empty() && packed.len() < packed.capacity() {
                return packed;
            }
            packed.reserve(packed.len().max(64));
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    let count = number(&mut block)?;
    if count > MAX_HEADERS {
        return Err(SpdyError::Headers("too many headers"));
    }
    let mut headers = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        headers.push((name, text(&mut block)?));
    }
    Ok(Headers(headers))
}

fn number(block: &mut &[u8]) -> Result<u32, SpdyError> {
    let (first, rest) = block
        .split_first_chunk::<4>()
        .ok_or(SpdyError::Headers("a header block is cut short"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*first))
}

fn text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = number(block)? as usize;
    if length > block.len() {
        return Err(SpdyError::Headers("a header block is cut short"));
    }
    let (text, rest) = block.split_at(length);
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Headers("a header is not UTF-8"))
}

/// The dictionary of SPDY/3, section 2.6.10.1: words with their lengths, then text.
const DICTIONARY: &[u8] = b"\
\0\0\0\x07options\0\0\0\x04head\0\0\0\x04post\0\0\0\x03put\0\0\0\x06delete\0\0\0\x05trace\
\0\0\0\x06accept\0\0\0\x0eaccept-charset\0\0\0\x0faccept-encoding\0\0\0\x0faccept-language\
\0\0\0\x0daccept-ranges\0\0\0\x03age\0\0\0\x05allow\0\0\0\x0dauthorization\
\0\0\0\x0dcache-control\0\0\0\nconnection\0\0\0\x0ccontent-base\0\0\0\x10content-encoding\
\0\0\0\x10content-language\0\0\0\x0econtent-length\0\0\0\x10content-location\
\0\0\0\x0bcontent-md5\0\0\0\x0dcontent-range\0\0\0\x0ccontent-type\0\0\0\x04date\0\0\0\x04etag\
\0\0\0\x06expect\0\0\0\x07expires\0\0\0\x04from\0\0\0\x04host\0\0\0\x08if-match\
\0\0\0\x11if-modified-since\0\0\0\x0dif-none-match\0\0\0\x08if-range\
\0\0\0\x13if-unmodified-since\0\0\0\x0dlast-modified\0\0\0\x08location\0\0\0\x0cmax-forwards\
\0\0\0\x06pragma\0\0\0\x12proxy-authenticate\0\0\0\x13proxy-authorization\0\0\0\x05range\
\0\0\0\x07referer\0\0\0\x0bretry-after\0\0\0\x06server\0\0\0\x02te\0\0\0\x07trailer\
\0\0\0\x11transfer-encoding\0\0\0\x07upgrade\0\0\0\nuser-agent\0\0\0\x04vary\0\0\0\x03via\
\0\0\0\x07warning\0\0\0\x10www-authenticate\0\0\0\x06method\0\0\0\x03get\0\0\0\x06status\
\0\0\0\x06200 OK\0\0\0\x07version\0\0\0\x08HTTP/1.1\0\0\0\x03url\0\0\0\x06public\
\0\0\0\nset-cookie\0\0\0\nkeep-alive\0\0\0\x06origin\
100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 N\
on-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized4\
03 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJa\
n Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTc\
hunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain\
,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,e\
nq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_one_stream() {
        let (mut encoder, mut decoder) = (HeaderEncoder::new(), HeaderDecoder::new());
        for round in 0..20 {
            let headers = Headers(vec![
                ("streamtype".into(), "stdin".into()),
                ("port".into(), round.to_string()),
                ("long".into(), "x".repeat(round * 997)),
            ]);
            let packed = encoder.encode(&headers);
            assert_eq!(decoder.decode(&packed).unwrap(), headers);
        }
        let empty = encoder.encode(&Headers::default());
        assert_eq!(decoder.decode(&empty).unwrap(), Headers::default());
    }

    #[test]
    fn the_dictionary_is_the_protocols() {
        // Its Adler-32 is what a zlib stream with it names; that of SPDY/3 is well known.
        let packed = HeaderEncoder::new().encode(&Headers::default());
        assert_eq!(
            packed[..2],
            [0x78, 0xf9],
            "deflate, best, with a dictionary"
        );
        assert_eq!(packed[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
        assert_eq!(DICTIONARY.len(), 1423);
    }

    #[test]
    fn bombs_and_junk_are_refused() {
        let mut encoder = HeaderEncoder::new();
        let bomb = encoder.encode(&Headers(vec![("x".into(), "x".repeat(1 << 20))]));
        assert!(HeaderDecoder::new().decode(&bomb).is_err());
        assert!(
            HeaderDecoder::new()
                .decode(b"junk that is not zlib")
                .is_err()
        );
        assert!(parse(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']).is_err());
        assert!(parse(&[0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn lookup_ignores_case() {
        let headers = Headers(vec![("streamtype".into(), "a\0b".into())]);
        assert_eq!(headers.get("streamType"), Some("a"));
        assert_eq!(headers.get("port"), None);
    }
}
