package openflow

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// vocabulary has every word that flows and groups of Twill can have, and some of their borders.
const vocabulary = `flow add cookie=0x1234567890abcdef,table=5,priority=100,ip,nw_dst=198.18.1.0/24 actions=drop
flow add cookie=0x1,table=5,ip,nw_src=0.0.0.0/1,nw_dst=198.18.1.7 actions=drop
flow add cookie=0x1,table=5,priority=0,in_port=32769 actions=set_field:0x1/0x7->reg0,goto_table:10
flow delete cookie=0x1234567890abcdef/-1
group delete group_id=642710292
group add_or_mod group_id=642710292,type=select,selection_method=dp_hash,bucket=bucket_id:152523147,weight:95,actions=ct(commit,table=60,zone=30480,nat(dst=198.18.1.2:8080)),bucket=bucket_id:305107716,weight:100,actions=ct(commit,table=60,zone=30480,nat(dst=[2001:db8::1]:8080))
group add_or_mod group_id=1,type=select,selection_method=hash,fields(ip_src),bucket=bucket_id:589844597,weight:100,actions=set_field:0xc6120103->reg3,set_field:0x14e9->reg4,resubmit(,45)
group add_or_mod group_id=2,type=select,selection_method=hash,fields(ipv6_src),bucket=bucket_id:589844597,weight:100,actions=set_field:0x20010db8000100010000000000000003->xxreg2,set_field:0x14e9->reg4,resubmit(,45)
group add_or_mod group_id=3,type=select,selection_method=hash,fields(tcp_src),bucket=bucket_id:589844597,weight:100,actions=group:1
group add_or_mod group_id=4,type=select,selection_method=hash,fields(udp_src),bucket=bucket_id:1,weight:1,actions=group:1
group add_or_mod group_id=4294967040,type=select,selection_method=hash,fields(sctp_src),bucket=bucket_id:4294967040,weight:65535,actions=drop
flow add cookie=0x1,table=5,priority=0 actions=output:NXM_NX_REG1[]
flow add cookie=0x1,table=5,priority=0 actions=output:3,output:32769
flow add cookie=0x1,table=5,priority=0 actions=IN_PORT
flow add cookie=0x1,table=5,priority=0,ip actions=dec_ttl,goto_table:40
flow add cookie=0x1,table=5,priority=0,ip actions=group:4294967040
flow add cookie=0x1,table=5,priority=0,ip actions=check_pkt_larger(1444)->NXM_NX_REG0[8],goto_table:30
flow add cookie=0x1,table=5,priority=0,ip actions=conjunction(1154743012,1/3),conjunction(1154743013,2/2)
flow add cookie=0x1,table=5,priority=0,ip actions=ct(commit,table=76,zone=30481,nat(src=198.18.0.1),exec(set_field:0x4->ct_mark))
flow add cookie=0x1,table=5,priority=0,ipv6 actions=ct(commit,table=76,zone=30481,nat(src=2001:db8::1),exec(set_field:0x1/0x1->ct_mark))
flow add cookie=0x1,table=5,priority=0,ip actions=ct(commit,zone=30482),goto_table:75
flow add cookie=0x1,table=5,priority=0,ip actions=ct(table=25,zone=30481,nat)
flow add cookie=0x1,table=5,priority=0,ip actions=ct(commit,table=60,zone=30480,nat(src))
flow add cookie=0x1,table=5,priority=0,ip actions=ct(commit,table=60,zone=30480,nat(dst))
flow add cookie=0x1,table=5,priority=0,ip actions=resubmit(,42)
flow add cookie=0x1,table=5,priority=0,arp actions=move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],set_field:2->arp_op,set_field:0e:77:00:00:00:01->arp_sha,move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],move:NXM_NX_REG2[]->NXM_OF_ARP_SPA[],move:NXM_OF_ARP_TPA[]->NXM_NX_REG2[],move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],IN_PORT
flow add cookie=0x1,table=5,priority=0,icmp6,icmp_type=135,icmp_code=0,nd_target=2001:db8::1,nd_sll=0a:58:00:00:01:02 actions=move:NXM_NX_IPV6_SRC[]->NXM_NX_IPV6_DST[],move:NXM_NX_ND_TARGET[]->NXM_NX_IPV6_SRC[],set_field:0->icmpv6_code,set_field:136->icmpv6_type,goto_table:85
flow add cookie=0x1,table=85,priority=100,icmp6,icmp_type=136,nd_tll=0a:58:00:00:01:02 actions=set_field:2->nd_options_type,set_field:3758096384->nd_reserved,set_field:0e:77:00:00:00:01->nd_tll,IN_PORT
flow add cookie=0x1,table=5,priority=0,ip actions=set_field:0x7->tun_id,set_field:198.51.100.2->tun_dst,set_field:2001:db8::1->tun_ipv6_dst,set_field:0a:58:00:00:01:02->eth_dst,set_field:0e:77:00:00:00:01->eth_src,set_field:0x1000/0x1000->reg0,set_field:0x5->pkt_mark
flow add cookie=0x1,table=5,priority=0,tun_id=0x7,tun_src=198.51.100.2,in_port=3 actions=drop
flow add cookie=0x1,table=5,priority=0,tun_id=0x1000/0x1000,tun_ipv6_src=2001:db8::1,in_port=3 actions=drop
flow add cookie=0x1,table=5,priority=0,ct_state=+est+rpl+trk,ct_mark=0x1/0x5,ip,reg0=0/0x44,reg12=0xcab1ab32 actions=drop
flow add cookie=0x1,table=5,priority=0,ct_state=+new-inv+trk+dnat-snat,tcp,tp_dst=0x2328/0xfff8,tp_src=7 actions=drop
flow add cookie=0x1,table=5,priority=0,tcp,tcp_flags=+syn-ack,reg5=0x80000000/0x80000000,pkt_mark=0x4 actions=drop
flow add cookie=0x1,table=5,priority=0,conj_id=1154743012,udp6,tp_dst=53,nw_ttl=1 actions=drop
flow add cookie=0x1,table=5,priority=0,arp,dl_src=0a:58:00:00:01:02,arp_spa=0.0.0.0,arp_tpa=198.18.1.1,arp_op=1,arp_sha=0a:58:00:00:01:02 actions=drop
flow add cookie=0x1,table=5,priority=0,arp,arp_tpa=198.18.1.0/24,arp_tha=0a:58:00:00:01:02,dl_dst=0a:58:00:00:01:02 actions=drop
flow add cookie=0x1,table=5,priority=0,icmp,icmp_type=11,icmp_code=0 actions=drop
flow add cookie=0x1,table=5,priority=0,sctp,tp_dst=11,nw_src=198.18.0.0/15 actions=drop
flow add cookie=0x1,table=5,priority=0,sctp6,tp_dst=11 actions=drop
flow add cookie=0x1,table=5,priority=0,tcp6,tp_dst=11 actions=drop
flow add cookie=0x1,table=5,priority=0,ip,nw_proto=47 actions=drop
flow add cookie=0x1,table=5,priority=0,icmp6,icmp_type=1,ipv6_src=fe80::/10,ipv6_dst=::,reg8=0x20010db8,reg9=0x1,reg15=7 actions=drop
`

// The bytes are those of ovs-ofctl, for every word and for all flows and groups of the golden tables.
func TestLineIsWhatOVSOFCtlSends(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(vocabulary), "\n")
	seen := len(lines)
	lines = append(lines, goldenLines(t)...)
	if len(lines) < seen+1000 {
		t.Fatalf("the golden tables have %d lines; there were more than 1,000", len(lines)-seen)
	}
	want := capture(t, strings.Join(lines, "\n"))
	if len(want) != len(lines) {
		t.Fatalf("ovs-ofctl made %d messages of %d lines", len(want), len(lines))
	}
	for i, line := range lines {
		got, err := Line(line)
		if err != nil {
			t.Errorf("%s\n%v", line, err)
		} else if !bytes.Equal(got, want[i]) {
			t.Errorf("%s\n got %x\nwant %x", line, got, want[i])
		}
	}
}

var (
	goldenFlow  = regexp.MustCompile(`(?m)^cookie=0x\S+ actions=\S+`)
	goldenGroup = regexp.MustCompile(`(?m)^group_id=\S+`)
)

// goldenLines are the flows and groups of the golden tables, without those that learn.
func goldenLines(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../flows/testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, group := range goldenGroup.FindAllString(string(text), -1) {
			group = regexp.MustCompile(`,fields=(\w+)`).ReplaceAllString(group, ",fields($1)")
			lines = append(lines, "group add_or_mod "+group)
		}
		for _, flow := range goldenFlow.FindAllString(string(text), -1) {
			lines = append(lines, "flow add "+flow)
		}
	}
	return slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "learn(") })
}

func TestLineRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, line := range []string{
		"", "flow", "meter add meter=1", "flow add table=0", "flow add table=256 actions=drop", "flow add table=0,nonsense actions=drop",
		"flow add table=0,vlan_tci=0x1000 actions=drop", "flow add table=0,ip,nw_dst=2001:db8::1 actions=drop", "flow add ip,nw_dst=198.18.0.0/33 actions=drop",
		"flow add table=0,ip,tp_dst=80 actions=drop", "flow add table=0,reg16=1 actions=drop", "flow add table=0,reg0=0x100000000 actions=drop",
		"flow add table=0,nd_reserved=1 actions=drop", "flow add table=0,dl_src=0a:58 actions=drop", "flow add table=0,ct_state=new actions=drop",
		"flow add table=0,ct_state=+old actions=drop", "flow add hard_timeout=5,table=0 actions=drop", "flow add table=0 actions=normal",
		"flow add table=0 actions=goto_table:5,IN_PORT", "flow add table=0 actions=", "flow add table=0 actions=learn(table=1,NXM_OF_ETH_SRC[])",
		"flow add table=0 actions=ct(commit,alg=ftp)", "flow add table=0 actions=ct(commit", "flow add table=0,ip actions=ct(nat(src=198.18.0.1-198.18.0.9))",
		"flow add table=0 actions=ct(exec(resubmit(,5)))", "flow add table=0 actions=set_field:1->nonsense", "flow add table=0 actions=set_field:1",
		"flow add table=0 actions=move:NXM_NX_REG0[0..15]->NXM_NX_REG1[0..15]", "flow add table=0 actions=move:NXM_NX_REG0[]->NXM_OF_ETH_SRC[]",
		"flow add table=0 actions=output:NXM_NX_REG0[0..15]", "flow add table=0 actions=conjunction(1,0/2)", "flow add table=0 actions=resubmit(1,2)",
		"flow add table=0 actions=check_pkt_larger(1)", "flow delete table=5", "flow delete cookie=0x5/0xff", "group delete group_id=all",
		"group add_or_mod group_id=1,type=all,bucket=actions=drop", "group add_or_mod group_id=1,type=select,selection_method=hash,fields(nonsense)",
		"group add_or_mod group_id=1,type=select,selection_method=dp_hash,bucket=bucket_id:1,weight:1,actions=goto_table:5",
		"group add_or_mod group_id=1,type=select,selection_method=dp_hash,bucket=bucket_id:1,actions=drop",
		"flow add table=0 actions=" + strings.Repeat("set_field:0x1->reg0,", 5000) + "drop",
	} {
		if m, err := Line(line); !errors.Is(err, ErrUnknown) || m != nil {
			t.Errorf("%.100q: %x, %v, want ErrUnknown", line, m, err)
		}
	}
}

// What is no message is an error, whatever the line is; and what is one has the length that it says.
func FuzzLine(f *testing.F) {
	for line := range strings.Lines(vocabulary) {
		f.Add(strings.TrimSpace(line))
	}
	f.Fuzz(func(t *testing.T, line string) {
		m, err := Line(line)
		if err != nil {
			if !errors.Is(err, ErrUnknown) || m != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return
		}
		if len(m) < HeaderSize || int(m[2])<<8|int(m[3]) != len(m) || len(m)%8 != 0 {
			t.Fatalf("%q: %x", line, m)
		}
	})
}
