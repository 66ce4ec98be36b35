package main

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// help prints what `--help` does, within the width of the terminal.
func help(cmd *cobra.Command, _ []string) {
	s := newScreen(cmd.OutOrStdout())
	if about := strings.TrimSpace(cmp.Or(cmd.Long, cmd.Short)); about != "" {
		reflow(s, about, s.width)
		fmt.Fprintln(s)
	}
	if cmd.Runnable() || cmd.HasSubCommands() {
		for line := range strings.Lines(cmd.UsageString()) {
			columns(s, strings.TrimRight(line, "\n"), s.width)
		}
	}
}

// reflow divides paragraphs anew.
func reflow(w io.Writer, text string, width int) {
	for i, paragraph := range strings.Split(text, "\n\n") {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if width > 0 {
			paragraph = strings.Join(wrap(paragraph, width, false), "\n")
		}
		fmt.Fprintln(w, paragraph)
	}
}

// described is a line with a command or flag and, behind a gap, what it is for.
var described = regexp.MustCompile(`^( +\S.*?  +)(\S.*)$`)

// columns prints a line of the usage; what does not fit goes on below its own beginning.
func columns(w io.Writer, line string, width int) {
	m := described.FindStringSubmatch(line)
	if width <= 0 || utf8.RuneCountInString(line) <= width || m == nil {
		fmt.Fprintln(w, line)
		return
	}
	screen{Writer: w, width: width}.put(m[1], m[2])
}
