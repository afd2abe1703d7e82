//! Decoding header blocks, for a server.
//!
//! All blocks of one direction are a single zlib stream that is flushed after each, so the inflater outlives the blocks.
//! Whether the preset dictionary is used says the stream's own header: kubectl's does, ours does not.

use flate2::{Decompress, FlushDecompress, Status};

use super::{Error, HeaderList, Limits, dictionary};

/// Bytes inflated per step.
const STEP: usize = 1024;

/// Inflates header blocks and takes them apart.
#[derive(Debug)]
pub(super) struct Inflater {
    limits: Limits,
    zlib: Decompress,
    /// The block so far, inflated.
    block: Vec<u8>,
}

impl Inflater {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, zlib: Decompress::new(true), block: Vec::new() }
    }

    /// Inflates a part of a block. Bounded by [`Limits::max_header_block`], whatever the input expands to.
    pub(super) fn feed(&mut self, mut input: &[u8]) -> Result<(), Error> {
        let mut step = [0; STEP];
        loop {
            let (consumed, produced) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress(input, &mut step, FlushDecompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - consumed).unwrap_or_default();
            let made = usize::try_from(self.zlib.total_out() - produced).unwrap_or_default();
            input = input.get(used..).unwrap_or_default();
            if self.block.len() + made > self.limits.max_header_block {
                return Err(Error::HeadersTooLarge);
            }
            self.block.extend_from_slice(step.get(..made).unwrap_or_default());
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    // Refuses a dictionary with another checksum than the stream asks for.
                    self.zlib.set_dictionary(&dictionary()).map_err(|_| Error::HeaderBlock)?;
                }
                // The stream never ends before the connection does.
                Err(_) | Ok(Status::StreamEnd) => return Err(Error::HeaderBlock),
                Ok(Status::Ok | Status::BufError) => {
                    if input.is_empty() && made < STEP {
                        return Ok(());
                    }
                    if used == 0 && made == 0 {
                        return Err(Error::HeaderBlock);
                    }
                }
            }
        }
    }

    /// The headers of the finished block.
    pub(super) fn take_headers(&mut self) -> Result<HeaderList, Error> {
        let headers = parse_block(&self.block, &self.limits);
        self.block.clear();
        // A port-forward's blocks are about 100 bytes: do not keep what an odd peer made us allocate.
        self.block.shrink_to(4 * STEP);
        headers
    }
}

fn parse_block(block: &[u8], limits: &Limits) -> Result<HeaderList, Error> {
    let mut rest = block;
    let count = take_len(&mut rest)?;
    if count > limits.max_header_count {
        return Err(Error::HeadersTooLarge);
    }
    let mut headers = HeaderList::new();
    for _ in 0..count {
        let name = take_text(&mut rest, limits)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Error::Header);
        }
        if headers.iter().any(|(earlier, _)| *earlier == name) {
            return Err(Error::Header);
        }
        let value = take_text(&mut rest, limits)?;
        headers.push((name, value));
    }
    if rest.is_empty() { Ok(headers) } else { Err(Error::HeaderBlock) }
}

fn take_len(rest: &mut &[u8]) -> Result<usize, Error> {
    let (raw, tail) = rest.split_first_chunk().ok_or(Error::HeaderBlock)?;
    *rest = tail;
    usize::try_from(u32::from_be_bytes(*raw)).map_err(|_| Error::HeadersTooLarge)
}

fn take_text(rest: &mut &[u8], limits: &Limits) -> Result<String, Error> {
    let len = take_len(rest)?;
    if len > limits.max_header_field {
        return Err(Error::HeadersTooLarge);
    }
    let (raw, tail) = rest.split_at_checked(len).ok_or(Error::HeaderBlock)?;
    *rest = tail;
    std::str::from_utf8(raw).map(str::to_owned).map_err(|_| Error::Header)
}
