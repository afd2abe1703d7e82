//! The fixture's deterministic stream (`testcluster/fixture/stream.go`), to check every byte of a download.

use std::sync::OnceLock;

/// Length of one period, a prime.
const PERIOD: usize = 1_048_573;

/// The first `PERIOD` bytes of the stream, which then repeats.
pub fn period() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes: Vec<u8> =
            (1..=PERIOD.div_ceil(8) as u64).flat_map(|k| split_mix(k).to_le_bytes()).collect();
        bytes.truncate(PERIOD);
        bytes
    })
}

/// Where in `received`, which starts at `offset` of the stream, the first wrong byte is.
#[must_use]
pub fn first_difference(offset: u64, received: &[u8]) -> Option<u64> {
    let period = period();
    let mut at = usize::try_from(offset % PERIOD as u64).unwrap_or(0);
    let mut checked = 0;
    while checked < received.len() {
        let length = (PERIOD - at).min(received.len() - checked);
        let (expected, got) = (&period[at..at + length], &received[checked..checked + length]);
        if expected != got {
            let wrong = expected.iter().zip(got).position(|(a, b)| a != b).unwrap_or(0);
            return Some(offset + (checked + wrong) as u64);
        }
        checked += length;
        at = 0;
    }
    None
}

fn split_mix(k: u64) -> u64 {
    let z = k.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_one_wrong_byte_after_the_wrap() {
        let mut received: Vec<u8> = period()[PERIOD - 10..].iter().chain(&period()[..100]).copied().collect();
        assert_eq!(first_difference((PERIOD - 10) as u64, &received), None);
        received[60] ^= 1;
        assert_eq!(first_difference((PERIOD - 10) as u64, &received), Some((PERIOD + 50) as u64));
    }
}
