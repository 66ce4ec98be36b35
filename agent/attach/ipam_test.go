package attach

import (
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/cni"
)

func TestOfEachRangeExactlyTheUsableAddressesAreGivenOut(t *testing.T) {
	for _, c := range []struct{ cidr, want string }{
		{"198.18.0.0/29", "198.18.0.2 198.18.0.3 198.18.0.4 198.18.0.5 198.18.0.6"},
		{"198.18.0.0/30", "198.18.0.2"},
		{"198.18.0.0/31", ""},
		{"198.18.0.0/32", ""},
		{"255.255.255.252/30", "255.255.255.254"},
		{"255.255.255.255/32", ""},
		{"2001:db8::/125", "2001:db8::2 2001:db8::3 2001:db8::4 2001:db8::5 2001:db8::6 2001:db8::7"},
		{"2001:db8::/126", "2001:db8::2 2001:db8::3"},
		{"2001:db8::/127", ""},
		{"2001:db8::/128", ""},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", ""},
	} {
		cidr := netip.MustParsePrefix(c.cidr)
		taken := map[netip.Addr]bool{}
		var got []netip.Addr
		var last netip.Addr
		for {
			a, ok := nextFree(cidr, last, taken)
			if !ok {
				break
			}
			taken[a], last = true, a
			got = append(got, a)
		}
		expect(t, c.cidr, words(got), c.want)
		expect(t, "capacity of "+c.cidr, capacity(cidr), len(got))
	}
}

func TestTheSearchGoesOnAfterTheLastAddressAndWrapsAround(t *testing.T) {
	cidr := netip.MustParsePrefix("198.18.0.0/29")
	for _, c := range []struct{ last, taken, want string }{
		{"", "", "198.18.0.2"},
		{"198.18.0.2", "", "198.18.0.3"},
		{"198.18.0.4", "198.18.0.5", "198.18.0.6"},
		{"198.18.0.6", "", "198.18.0.2"},
		{"198.18.0.5", "198.18.0.6 198.18.0.2", "198.18.0.3"},
		{"198.18.0.200", "", "198.18.0.2"}, // of another range
		{"198.18.0.0", "", "198.18.0.2"},
		{"2001:db8::5", "", "198.18.0.2"},
		{"198.18.0.3", "198.18.0.2 198.18.0.4 198.18.0.5 198.18.0.6", "198.18.0.3"},
		{"198.18.0.3", "198.18.0.2 198.18.0.3 198.18.0.4 198.18.0.5 198.18.0.6", "none"},
		{"198.18.0.3", "198.18.0.2 198.18.0.3 198.18.0.4 198.18.0.5 198.18.0.6 203.0.113.1 203.0.113.2", "none"},
	} {
		taken := map[netip.Addr]bool{}
		for _, a := range strings.Fields(c.taken) {
			taken[netip.MustParseAddr(a)] = true
		}
		last, _ := netip.ParseAddr(c.last)
		got := "none"
		if a, ok := nextFree(cidr, last, taken); ok {
			got = a.String()
		}
		expect(t, "after "+c.last+" without "+c.taken, got, c.want)
	}
}

func TestCapacityOfLargeRangesDoesNotOverflow(t *testing.T) {
	for cidr, want := range map[string]int{
		"198.18.0.0/20": 4093, "198.18.0.0/24": 253, "0.0.0.0/0": 1<<32 - 3,
		"2001:db8::/112": 1<<16 - 2, "2001:db8::/66": 1<<62 - 2, "2001:db8::/65": math.MaxInt - 1, "2001:db8::/64": math.MaxInt, "::/0": math.MaxInt,
	} {
		expect(t, cidr, capacity(netip.MustParsePrefix(cidr)), want)
	}
}

func TestTheMACEndsInTheIPv4AddressAndIsLocallyAdministered(t *testing.T) {
	addr := netip.MustParseAddr
	expect(t, "IPv4", macOf([]netip.Addr{addr("198.18.1.2")}).String(), "0a:77:c6:12:01:02")
	expect(t, "dual stack", macOf([]netip.Addr{addr("2001:db8::2"), addr("198.18.1.2")}).String(), "0a:77:c6:12:01:02")
	one, other := macOf([]netip.Addr{addr("2001:db8::2")}).String(), macOf([]netip.Addr{addr("2001:db8::3")}).String()
	if one == other || !strings.HasPrefix(one, "0a:76:") || !strings.HasPrefix(other, "0a:76:") {
		t.Errorf("IPv6: %s and %s, want two that begin with 0a:76", one, other)
	}
}

func TestAPodGetsOneAddressOfEachFamily(t *testing.T) {
	n := newNode(t, "198.18.0.0/24", "2001:db8::/64")
	r := n.start().add(t, pod(1))
	expect(t, "addresses", words(r.Addresses), "198.18.0.2 2001:db8::2")
	expect(t, "gateways", words(r.Gateways), "198.18.0.1 2001:db8::1")
}

func TestAnAddressRestsBeforeItIsUsedAgain(t *testing.T) {
	n := newNode(t, "198.18.0.0/29")
	a := n.start()
	for i := range 5 {
		a.add(t, pod(i))
	}
	a.del(t, pod(3))
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 5, Used: 4, Cooling: 1, Free: 0})
	_, err := a.Add(t.Context(), pod(9), n.netns)
	expectError(t, err, cni.ErrTryAgain, "podCIDR 198.18.0.0/29 of node node-1", "of 5, 4 are in use and 1 rest for up to 1m0s")
	n.pass(time.Minute - 1)
	if _, err := a.Add(t.Context(), pod(9), n.netns); err == nil {
		t.Error("an address was used again before its minute of rest had passed")
	}
	n.pass(1)
	expect(t, "the address that has rested", words(a.add(t, pod(9)).Addresses), "198.18.0.5")
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 5, Used: 5})
}

func TestAFullRangeIsNamedWithItsUseAndARemedy(t *testing.T) {
	for _, c := range []struct {
		cidr string
		pods int
		says string
	}{{"198.18.0.0/30", 1, "of 1, 1 are in use"}, {"2001:db8::/126", 2, "of 2, 2 are in use"}, {"198.18.0.0/31", 0, "of 0, 0 are in use"}} {
		n := newNode(t, c.cidr)
		a := n.start()
		for i := range c.pods {
			a.add(t, pod(i))
		}
		before := n.dump()
		_, err := a.Add(t.Context(), pod(9), n.netns)
		expectError(t, err, cni.ErrNoFreeAddress, "podCIDR "+c.cidr+" of node node-1", c.says, "delete pods", "--node-cidr-mask-size")
		expect(t, "the node after the refusal", n.dump(), before)
	}
}

func TestOnlyTheFullRangeOfADualStackNodeCounts(t *testing.T) {
	n := newNode(t, "198.18.0.0/24", "2001:db8::/126")
	a := n.start()
	a.add(t, pod(1))
	a.add(t, pod(2))
	_, err := a.Add(t.Context(), pod(9), n.netns)
	expectError(t, err, cni.ErrNoFreeAddress, "podCIDR 2001:db8::/126", "of 2, 2 are in use and 0 rest")
	expect(t, "what the failed ADD used of the other range", a.Usage().Ranges[0].Used, 2)
	a.del(t, pod(2))
	n.setCIDRs("198.18.0.0/24", "2001:db8:1::/127")
	_, err = a.Add(t.Context(), pod(9), n.netns)
	expectError(t, err, cni.ErrNoFreeAddress, "podCIDR 2001:db8:1::/127", "of 0, 0 are in use and 0 rest") // what rests elsewhere does not help
}

func TestWithoutAPodCIDRTheErrorNamesCauseAndRemedy(t *testing.T) {
	n := newNode(t)
	_, err := n.start().Add(t.Context(), pod(1), n.netns)
	expectError(t, err, cni.ErrTryAgain, "node node-1 has no usable podCIDR", "--allocate-node-cidrs", "spec.podCIDR")
	expect(t, "what is left", n.dump(), "")
}

func TestUsageOfAHugeRangeIsNeverNegative(t *testing.T) {
	n := newNode(t, "2001:db8::/64")
	a := n.start()
	a.add(t, pod(1))
	a.add(t, pod(2))
	a.del(t, pod(2))
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: math.MaxInt, Used: 1, Cooling: 1, Free: math.MaxInt - 2})
}

func TestRowsOutsideWhatPodsCanHaveDoNotSpoilTheCount(t *testing.T) {
	n := newNode(t, "198.18.0.0/30")
	a := n.start()
	p := record{}.row()
	p.Name, p.ExternalIDs[keyAddresses] = "tw0", "198.18.0.0 198.18.0.1 198.18.0.2 198.18.0.3 203.0.113.1"
	n.rows["tw0"] = p
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 1, Used: 1})
}

func TestAfterAChangeOfThePodCIDROldLeasesLiveOn(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	old := a.add(t, pod(1))
	n.setCIDRs("198.18.1.0/24")
	expect(t, "a new pod", words(a.add(t, pod(2)).Addresses), "198.18.1.2")
	if err := a.Check(t.Context(), withPrevious(t, pod(1), old), n.netns); err != nil {
		t.Errorf("CHECK of the old pod: %v", err)
	}
	expect(t, "attachments", len(a.Attachments()), 2)
	expect(t, "usage", a.Usage().Ranges[0].Used, 1)

	n.setCIDRs("198.18.0.0/24", "2001:db8::/64")
	expect(t, "usage after the range came back", a.Usage().Ranges[0].Used, 1)
	expect(t, "a new pod", words(a.add(t, pod(3)).Addresses), "198.18.0.3 2001:db8::2")
}

func TestARepeatedADDMovesAPodWhosePodCIDRIsGone(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	n.setCIDRs("198.18.1.0/24")
	r := a.add(t, pod(1))
	expect(t, "addresses", words(r.Addresses), "198.18.1.2")
	expect(t, "gateways", words(r.Gateways), "198.18.1.1")
	expect(t, "rows", len(n.rows), 1)
}

func TestOpenFlowNumbersGoRoundBelowThoseOfTunnelAndGateway(t *testing.T) {
	expect(t, "the first", nextPort(0, nil), 1)
	expect(t, "after the last", nextPort(maxPort, map[int]bool{1: true}), 2)
	all := map[int]bool{}
	for i := range maxPort {
		all[i+1] = true
	}
	expect(t, "when all are taken", nextPort(5, all), 0)
	delete(all, 5)
	expect(t, "the one that is free", nextPort(5, all), 5)
	expect(t, "the last", maxPort, 32767)
}
