//! The frames of records in an event file: length, its checksum, the bytes, their checksum; numbers are little-endian.

/// Returns the masked CRC-32C that event files store: rotated, with a constant added, since the CRC of bytes that contain a CRC is a weak check.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Returns a record in its frame.
pub(super) fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let checksums = [masked_checksum(&length), masked_checksum(bytes)].map(u32::to_le_bytes);
    [&length[..], &checksums[0], bytes, &checksums[1]].concat()
}

/// Returns the records of a whole file, or none if a frame or a checksum is wrong.
#[cfg(test)]
pub(super) fn unframed(mut file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    while !file.is_empty() {
        let (length, rest) = file.split_first_chunk::<8>()?;
        let (check, rest) = rest.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let (check_bytes, rest) = rest.split_first_chunk::<4>()?;
        let right = [(&length[..], check), (bytes, check_bytes)]
            .iter()
            .all(|(bytes, check)| masked_checksum(bytes) == u32::from_le_bytes(**check));
        records.push(right.then(|| bytes.to_vec())?);
        file = rest;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_specified_and_damage_is_noticed() {
        // The published check value of CRC-32C, for "123456789", is 0xe3069283.
        let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_checksum(b"123456789"), masked);
        let file = [framed(b"123456789"), framed(b"")].concat();
        assert_eq!(file[..8], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(file[21..25], masked.to_le_bytes());
        assert_eq!(unframed(&file).unwrap(), [b"123456789".to_vec(), Vec::new()]);
        for byte in 0..file.len() {
            let mut damaged = file.clone();
            damaged[byte] ^= 1;
            assert!(unframed(&damaged).is_none(), "byte {byte}");
        }
    }
}
