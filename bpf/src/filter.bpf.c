// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Steers wanted UDP datagrams into AF_XDP sockets; the kernel gets everything else untouched.
 *
 * Wanted is Ethernet, up to two VLAN tags (802.1Q, 802.1ad), IPv4 without options or fragments, and
 * UDP to an (address, port) that is in `wanted`. Whatever is odd about a packet, the answer is
 * XDP_PASS: the kernel is the better judge of what this program does not understand.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_TAGS 2
#define MORE_FRAGMENTS 0x2000
#define FRAGMENT_OFFSET 0x1fff

/* What became of a packet: the index into `counters`. The loader's `Counters` has the same order. */
enum reason {
	REDIRECTED,
	NO_SOCKET,
	NOT_UDP,
	FRAGMENT,
	OPTIONS,
	TRUNCATED,
	NO_MATCH,
	BAD_LENGTH,
	FAULT_DROPPED,
	REASONS,
};

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

/* Both in network order; `zero` leaves no padding that the hash would see. */
struct destination {
	__be32 addr;
	__be16 port;
	__u16 zero;
};

/* A lab's losses. All zero in production, where the verifier then removes the branch. */
struct fault {
	__u64 drop_below; /* drop when a 32-bit hash is below this: 2^32 drops all */
	__u64 burst_at;
	__u64 burst_len;
	__u64 seed;
};

const volatile struct fault fault SEC(".rodata.fault") = {};

/* How many wanted packets have arrived. Kept only with a fault: shared, so that runs repeat on any number of CPUs. */
__u64 arrived = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct destination);
	__type(value, __u8);
} wanted SEC(".maps");

/* By receive queue. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);

	if (counter)
		*counter += 1;
}

static __always_inline int pass(__u32 reason)
{
	count(reason);
	return XDP_PASS;
}

/* SplitMix64's output function: every seed gives its own fixed sequence over the packet's index. */
static __always_inline __u32 hash(__u64 seed, __u64 index)
{
	__u64 z = seed + (index + 1) * 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return (z ^ (z >> 31)) >> 32;
}

static __always_inline int faulty(void)
{
	__u64 index;

	if (!fault.drop_below && !fault.burst_len)
		return 0;
	index = __sync_fetch_and_add(&arrived, 1);
	/* An index below burst_at wraps to a number that no burst is long enough to reach. */
	return index - fault.burst_at < fault.burst_len || hash(fault.seed, index) < fault.drop_below;
}

SEC("xdp")
int seqcast_filter(struct xdp_md *ctx)
{
	void *at = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct destination to = {};
	struct ethhdr *eth = at;
	struct udphdr *udp;
	struct iphdr *ip;
	__be16 proto;
	__u32 total, length, headers = sizeof(*eth);
	int verdict;

	if (at + sizeof(*eth) > end)
		return pass(TRUNCATED);
	proto = eth->h_proto;
	at += sizeof(*eth);

#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		struct vlan_tag *tag = at;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if (at + sizeof(*tag) > end)
			return pass(TRUNCATED);
		proto = tag->proto;
		at += sizeof(*tag);
		headers += sizeof(*tag);
	}
	if (proto != bpf_htons(ETH_P_IP))
		return pass(NOT_UDP);

	ip = at;
	if (at + sizeof(*ip) > end)
		return pass(TRUNCATED);
	if (ip->version != 4 || ip->ihl < 5)
		return pass(BAD_LENGTH);
	if (ip->protocol != IPPROTO_UDP)
		return pass(NOT_UDP);
	if (ip->ihl > 5)
		return pass(OPTIONS);
	if (ip->frag_off & bpf_htons(MORE_FRAGMENTS | FRAGMENT_OFFSET))
		return pass(FRAGMENT);

	udp = at + sizeof(*ip);
	if ((void *)(udp + 1) > end)
		return pass(TRUNCATED);
	to.addr = ip->daddr;
	to.port = udp->dest;
	if (!bpf_map_lookup_elem(&wanted, &to))
		return pass(NO_MATCH);

	/* UDP within IP within the frame; an Ethernet frame may be padded, so it may be longer. */
	total = bpf_ntohs(ip->tot_len);
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || sizeof(*ip) + length > total)
		return pass(BAD_LENGTH);
	/* Asks for the length, as arithmetic on packet pointers would take CAP_PERFMON. */
	if (headers + total > bpf_xdp_get_buff_len(ctx))
		return pass(TRUNCATED);

	if (faulty()) {
		count(FAULT_DROPPED);
		return XDP_DROP;
	}
	verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
	count(verdict == XDP_REDIRECT ? REDIRECTED : NO_SOCKET);
	return verdict;
}

char _license[] SEC("license") = "Dual MIT/GPL";
