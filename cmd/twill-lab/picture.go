package main

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/twill-net/twill/test/lab"
)

// picture draws the lab: the underlay on top, and hanging from it the nodes with their pods.
func picture(s lab.Status) string {
	height := 0
	var nodes [][]string
	for _, n := range s.Nodes {
		nodes = append(nodes, column(n, s.Pods))
		height = max(height, len(nodes[len(nodes)-1]))
	}
	rows := make([]string, height+4)
	for _, lines := range nodes {
		for i, line := range box(lines, height) {
			rows[i] += line
		}
	}
	for i := range rows {
		rows[i] = strings.TrimRight(rows[i], " ")
	}
	return fmt.Sprintf("underlay, MTU %d, %s between nodes\n%s\n", s.UnderlayMTU, s.Tunnel, strings.Join(rows, "\n"))
}

// box frames the lines and hangs them from a piece of the wire. All lines of the result have one width.
func box(lines []string, height int) []string {
	width := 0
	for _, line := range lines {
		width = max(width, utf8.RuneCountInString(line))
	}
	edge := strings.Repeat("─", width)
	blank := strings.Repeat(" ", width)
	framed := []string{
		"──┬─" + edge + "──",
		"  │ " + blank + "  ",
		"┌─┴" + edge + "┐  ",
	}
	for i := range height {
		text := ""
		if i < len(lines) {
			text = lines[i]
		}
		framed = append(framed, "│ "+text+blank[utf8.RuneCountInString(text):]+" │  ")
	}
	return append(framed, "└─"+edge+"─┘  ")
}

// column is the text of one node's box.
func column(n lab.NodeStatus, pods []lab.Pod) []string {
	lines := append([]string{n.Name}, n.Addresses...)
	lines = append(lines, "br-twill")
	for _, p := range pods {
		if p.Node != n.Name {
			continue
		}
		who := " └ " + p.Name
		for _, a := range p.Addresses {
			lines = append(lines, fmt.Sprintf("%s  %s", who, a))
			who = strings.Repeat(" ", utf8.RuneCountInString(who))
		}
	}
	return lines
}
