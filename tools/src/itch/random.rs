//! A small seeded generator: the same numbers on every machine, for ever.

/// xoshiro256++ (Blackman, Vigna), seeded by splitmix64.
pub(super) struct Random([u64; 4]);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        Random(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }))
    }

    pub(super) fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number from 0 to `bound` - 1; the bias is below `bound` / 2^32.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// 0 with probability 1/2, 1 with 1/4, and so on, at most `max`.
    pub(super) fn halvings(&mut self, max: u32) -> u32 {
        self.next().trailing_zeros().min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn numbers_match_the_published_algorithm() {
        // First outputs of the reference C code of xoshiro256++ for the state 1, 2, 3, 4.
        let mut random = Random([1, 2, 3, 4]);
        assert_eq!(
            [random.next(), random.next(), random.next()],
            [41943041, 58720359, 3588806011781223]
        );
    }
}
