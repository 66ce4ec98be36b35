package inspect

import (
	"context"

	"github.com/twill-net/twill/flows"
)

// liveGroups reads the groups back.
func (s *Subject) liveGroups(ctx context.Context) ([]flows.LiveGroup, error) {
	text, err := s.Groups(ctx)
	if err != nil {
		return nil, err
	}
	return flows.ParseGroups(text)
}
