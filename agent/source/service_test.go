package source

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestWhatIsWrongWithAServiceIsNamedAndTheRestIsUsed: what a Problem says is what the Event at the object says.
func TestWhatIsWrongWithAServiceIsNamedAndTheRestIsUsed(t *testing.T) {
	number := func(n int32) *int32 { return &n }
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIPs: []string{"198.19.0.10", "127.0.0.1"},
		Ports: []corev1.ServicePort{
			{Name: "good", Port: 80}, {Name: "zero", Port: 0}, {Name: "twice", Port: 80}, {Name: "good", Port: 81},
			{Name: "odd", Port: 82, Protocol: "IPX"}, {Name: "large", Port: 65536}, {Name: "other", Port: 80, Protocol: corev1.ProtocolUDP},
		},
	}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: number(8080)}, {Port: number(0)}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"198.18.1.2"}}, {Addresses: []string{"2001:db8::2"}}, {}, {Addresses: []string{"127.0.0.1"}}},
	}
	value, problems := convertService(service)
	check(t, problems, `spec.clusterIPs "127.0.0.1" is no address that a Service can have`, "spec.ports[1].port 0 is not between 1 and 65535; the port is not served",
		"spec.ports[2] (twice 80/tcp) has the number or the name of an earlier port", "spec.ports[3] (good 81/tcp) has the number or the name of an earlier port",
		`spec.ports[4].protocol "IPX" is none of TCP, UDP and SCTP`, "spec.ports[5].port 65536 is not between 1 and 65535")
	if s := value.(*ServiceObject); len(s.Ports) != 2 || s.Ports[0].Name != "good" || s.Ports[1].Name != "other" || len(s.ClusterIPs) != 1 {
		t.Errorf("of the Service is used: %+v", s)
	}
	value, problems = convertSlice(slice)
	check(t, problems, "ports[1].port 0 is not between 1 and 65535; it is not used", "endpoints[1] has the address 2001:db8::2, but the slice is of type IPv4; it is not used",
		"endpoints[2] has no address; it is not used", `endpoints[3].addresses "127.0.0.1" is no address that a Service can have`)
	if s := value.(*SliceObject); len(s.Ports) != 1 || len(s.Endpoints) != 1 {
		t.Errorf("of the slice is used: %+v", s)
	}
}

func check(t *testing.T, got []Problem, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d problems, want %d: %v", len(got), len(want), got)
		return
	}
	for i := range want {
		if !strings.HasPrefix(got[i].Reason, want[i]) || !strings.Contains(got[i].Reason, "orrect") && !strings.Contains(got[i].Reason, "delete the Service") {
			t.Errorf("got %q\nwant %q with a remedy", got[i].Reason, want[i])
		}
	}
}
