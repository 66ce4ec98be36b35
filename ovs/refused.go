package ovs

import (
	"regexp"
	"strconv"
)

// cookieIn is how ovs-ofctl writes a cookie, in its input and in what it prints.
var cookieIn = regexp.MustCompile(`\bcookie[:=](0x[0-9a-f]+|\d+)`)

// Cookie is that of the flow which ovs-ofctl or the switch refused; ok is false when the failure names none.
func (e *Error) Cookie() (cookie uint64, ok bool) {
	for _, text := range []string{e.Text, e.Reason} {
		if m := cookieIn.FindStringSubmatch(text); m != nil {
			n, err := strconv.ParseUint(m[1], 0, 64)
			return n, err == nil
		}
	}
	return 0, false
}
