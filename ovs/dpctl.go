package ovs

import "strings"

// Section is what stands in name(…) of a datapath flow, as dpctl/dump-flows prints it (ovs-dpctl(8)); false if it is not
// there.
func Section(flow, name string) (string, bool) {
	_, rest, ok := strings.Cut(","+flow, ","+name+"(")
	inside, _, closed := strings.Cut(rest, ")")
	return inside, ok && closed
}

// SectionFields are the fields of a Section, nil if it is not there.
func SectionFields(flow, name string) map[string]string {
	inside, ok := Section(flow, name)
	if !ok {
		return nil
	}
	return Fields(inside)
}

// Fields reads "name=value,name=value".
func Fields(text string) map[string]string {
	out := map[string]string{}
	for field := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(field, "=")
		out[name] = value
	}
	return out
}
