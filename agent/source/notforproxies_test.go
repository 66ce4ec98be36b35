package source

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAServiceThatIsNotForThisProxyByItsLabelsIsLeftAlone(t *testing.T) {
	for _, c := range []struct {
		labels map[string]string
		served bool
	}{
		{nil, true},
		{map[string]string{"app": "web"}, true},
		{map[string]string{"service.kubernetes.io/service-proxy-name": "other"}, false},
		{map[string]string{"service.kubernetes.io/service-proxy-name": ""}, false},
		{map[string]string{"service.kubernetes.io/headless": ""}, false},
		{map[string]string{"service.kubernetes.io/headless": "foo"}, false},
	} {
		s := stripService(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: c.labels},
			Spec:       corev1.ServiceSpec{ClusterIP: "198.19.0.1", Ports: []corev1.ServicePort{{Port: 80}}},
		})
		out, problems := convertService(s)
		if served := len(out.(*ServiceObject).ClusterIPs) > 0; served != c.served || len(problems) > 0 {
			t.Errorf("labels %v: served %v (%v), want %v", c.labels, served, problems, c.served)
		}
	}
}
