package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// screen is where text goes. On a terminal it wraps at the width and may colour; in a pipe or file every
// statement stays one line, for grep.
type screen struct {
	io.Writer
	width  int // columns; 0 never wraps
	colour bool
}

// newScreen looks at what w is. COLUMNS sets a width by hand, NO_COLOR forbids colour (https://no-color.org).
func newScreen(w io.Writer) screen {
	s := screen{Writer: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			s.width = width
		}
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		s.width = n
	}
	return s
}

func (s screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s screen) good(text string) string { return s.paint("32", text) }
func (s screen) bad(text string) string  { return s.paint("31", text) }
func (s screen) dim(text string) string  { return s.paint("2", text) }
func (s screen) bold(text string) string { return s.paint("1", text) }

// leastText is the narrowest column that text is wrapped into.
const leastText = 24

// put prints head and, beside it, text; what does not fit in the width goes on below its own beginning, or,
// where that leaves too little room, indented on the next line.
func (s screen) put(head, text string) {
	s.putColoured(head, utf8.RuneCountInString(head), text)
}

// putColoured is put for a head that holds escape sequences; size is its width on the screen.
func (s screen) putColoured(head string, size int, text string) {
	indent := size
	if s.width > 0 && s.width-indent < leastText && utf8.RuneCountInString(text) > s.width-indent {
		fmt.Fprintln(s, strings.TrimRight(head, " "))
		indent = min(8, s.width/4)
		head = strings.Repeat(" ", indent)
	}
	for i, line := range wrap(text, s.width-indent, s.width == 0) {
		if i > 0 {
			head = strings.Repeat(" ", indent)
		}
		fmt.Fprintln(s, strings.TrimRight(head+line, " "))
	}
}

// wrap divides text at spaces into lines of at most width columns; a longer word stays whole.
func wrap(text string, width int, never bool) []string {
	if never {
		return []string{text}
	}
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// count is a number of packets or bytes for a column: 999, 12.3k, 4.5M.
func count(n uint64) string {
	for _, u := range []struct {
		least float64
		name  string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e4, "k"}} {
		if float64(n) >= u.least {
			div := u.least
			if u.name == "k" {
				div = 1e3
			}
			return fmt.Sprintf("%.1f%s", float64(n)/div, u.name)
		}
	}
	return fmt.Sprint(n)
}

// sortedKeys are the keys of a map in an order that does not change.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
