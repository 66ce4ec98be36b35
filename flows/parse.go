package flows

import (
	"fmt"
	"strings"
)

// ParseMatch reads a match as ovs-ofctl prints it. It accepts any text; what is no field of ours stays
// readable as it stands.
func ParseMatch(s string) Match {
	var m Match
	for _, part := range splitTop(s) {
		name, value, _ := strings.Cut(part, "=")
		if f := (Field{strings.TrimSpace(name), strings.TrimSpace(value)}); f != (Field{}) {
			m = append(m, f)
		}
	}
	return m
}

// ParseActions reads the actions of a flow as ovs-ofctl prints them; "drop" is the empty list.
func ParseActions(s string) (Actions, error) {
	var out Actions
	for _, part := range splitTop(s) {
		if strings.Count(part, "(") != strings.Count(part, ")") {
			return nil, fmt.Errorf("action %q: unbalanced parentheses; the dump is cut short", part)
		}
		verb, arg := part, ""
		if i := strings.IndexAny(part, ":("); i >= 0 {
			verb, arg = part[:i], strings.TrimPrefix(part[i:], ":")
		}
		if verb = strings.TrimSpace(verb); verb == "" {
			return nil, fmt.Errorf("action %q: it has no name; the dump is damaged", part)
		}
		out = append(out, Action{verb, strings.TrimSpace(arg)})
	}
	if len(out) == 1 && out[0].Verb == "drop" {
		return nil, nil
	}
	return out, nil
}

// splitTop splits at commas outside parentheses and drops empty parts.
func splitTop(s string) []string {
	var out []string
	depth, start := 0, 0
	flush := func(end int) {
		if p := strings.TrimSpace(s[start:end]); p != "" {
			out = append(out, p)
		}
		start = end + 1
	}
	for i, r := range s {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth <= 0 {
				flush(i)
			}
		}
	}
	if start <= len(s) {
		flush(len(s))
	}
	return out
}
