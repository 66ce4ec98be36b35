package source

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkOnePolicyMore is a file with one NetworkPolicy that comes and goes beside one with many.
func BenchmarkOnePolicyMore(b *testing.B) {
	for _, others := range []int{0, 1000, 10000} {
		b.Run(fmt.Sprintf("policies=%d", others), func(b *testing.B) {
			dir := b.TempDir()
			var text strings.Builder
			policy := func(i int) string {
				return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: ns-%d, name: np-%d}\n"+
					"spec: {podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}\n", i%100, i)
			}
			for i := range others {
				text.WriteString(policy(i))
			}
			write(b, filepath.Join(dir, "others.yaml"), text.String())
			write(b, filepath.Join(dir, "one.yaml"), policy(-1))
			changed := 0
			m, err := NewManifests(ManifestsConfig{Dir: dir, Log: silent(), OnChange: func(Key) { changed++ }})
			if err == nil {
				err = m.read()
			}
			if err != nil {
				b.Fatal(err)
			}
			changed = 0
			n := 0
			for b.Loop() {
				n++
				write(b, filepath.Join(dir, "one.yaml"), policy(-1-n%2))
				if err := m.readNamed(map[string]bool{"one.yaml": true}); err != nil {
					b.Fatal(err)
				}
			}
			if changed != 2*n {
				b.Errorf("%d changes of objects, want %d", changed, 2*n)
			}
		})
	}
}
