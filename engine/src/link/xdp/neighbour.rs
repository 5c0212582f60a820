use std::net::Ipv4Addr;

/// Seconds after which a neighbour that has not been heard is asked for again, through the kernel.
const STALE_AFTER: u32 = 60;
const SLOTS: usize = 1024;
/// How far from its own slot an address may lie.
const PROBES: usize = 8;

/// Which Ethernet address leads to which IPv4 address, as seen in the frames that arrive.
///
/// Bounded and fixed in size. When many addresses want the same slots, the longest unheard gives
/// way: its traffic takes the kernel's path until it is heard again.
pub(super) struct Neighbours {
    slots: Box<[Slot; SLOTS]>,
}

#[derive(Clone, Copy)]
struct Slot {
    /// 0.0.0.0 in an empty slot.
    address: u32,
    heard: u32,
    mac: [u8; 6],
}

impl Neighbours {
    pub(super) fn new() -> Neighbours {
        let empty = Slot {
            address: 0,
            heard: 0,
            mac: [0; 6],
        };
        Neighbours {
            slots: Box::new([empty; SLOTS]),
        }
    }

    /// Notes that a frame from `address` came from `mac` at `now` (seconds). Addresses that cannot
    /// be a sender's are not noted.
    #[inline]
    pub(super) fn heard(&mut self, address: Ipv4Addr, mac: [u8; 6], now: u32) {
        let a_host = !(address.is_unspecified() || address.is_multicast() || address.is_broadcast());
        if !a_host || mac[0] & 1 != 0 {
            return;
        }
        let address = address.to_bits();
        let mut place = Self::home(address);
        let mut longest = 0;
        for slot in Self::probe(address) {
            let Slot {
                address: there, heard, ..
            } = self.slots[slot];
            if there == address || there == 0 {
                place = slot;
                break;
            }
            let unheard = now.wrapping_sub(heard);
            if unheard >= longest {
                (place, longest) = (slot, unheard);
            }
        }
        self.slots[place] = Slot {
            address,
            heard: now,
            mac,
        };
    }

    /// The Ethernet address that leads to `address`, if it was heard lately.
    #[inline]
    pub(super) fn find(&self, address: Ipv4Addr, now: u32) -> Option<[u8; 6]> {
        let address = address.to_bits();
        let slot = Self::probe(address)
            .map(|slot| &self.slots[slot])
            .find(|slot| slot.address == address)?;
        (address != 0 && now.wrapping_sub(slot.heard) <= STALE_AFTER).then_some(slot.mac)
    }

    fn home(address: u32) -> usize {
        // Fibonacci hashing: the product's high bits depend on all of the address.
        (address.wrapping_mul(0x9e37_79b9) >> (u32::BITS - SLOTS.ilog2())) as usize
    }

    fn probe(address: u32) -> impl Iterator<Item = usize> {
        let home = Self::home(address);
        (0..PROBES).map(move |i| (home + i) % SLOTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u32) -> [u8; 6] {
        let [a, b, c, d] = n.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn an_address_is_known_while_it_is_heard() {
        let mut table = Neighbours::new();
        let peer = Ipv4Addr::new(10, 0, 0, 2);
        assert_eq!(table.find(peer, 0), None);
        table.heard(peer, mac(1), 100);
        assert_eq!(table.find(peer, 100 + STALE_AFTER), Some(mac(1)));
        assert_eq!(table.find(peer, 101 + STALE_AFTER), None);
        table.heard(peer, mac(2), 200);
        assert_eq!(table.find(peer, 200), Some(mac(2)));
    }

    #[test]
    fn what_cannot_be_a_sender_is_not_noted() {
        let mut table = Neighbours::new();
        let peer = Ipv4Addr::new(10, 0, 0, 2);
        table.heard(peer, [0xff; 6], 1);
        assert_eq!(table.find(peer, 1), None);
        for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(239, 0, 0, 1)] {
            table.heard(address, mac(1), 1);
            assert_eq!(table.find(address, 1), None);
        }
    }

    #[test]
    fn a_full_table_forgets_only_the_longest_unheard_and_never_lies() {
        let mut table = Neighbours::new();
        let address = |n: u32| Ipv4Addr::from_bits(0x0a00_0000 + n);
        for n in 1..=20_000 {
            table.heard(address(n), mac(n), n / 1000);
        }
        let known = (1..=20_000).filter(|&n| {
            let found = table.find(address(n), 20);
            assert!(found.is_none_or(|found| found == mac(n)));
            found.is_some()
        });
        let known: Vec<u32> = known.collect();
        assert!(known.len() > SLOTS / 2 && known.len() <= SLOTS);
        assert!(known.contains(&20_000));
    }
}
