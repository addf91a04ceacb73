package projector

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/server/dial"
)

// peers are the other workers. Its fields are immutable.
type peers struct {
	instance  string // of this worker
	replica   bool   // this worker is a replica
	control   *control.Follower
	caller    *dial.Caller
	transport *dial.Transport // of caller
}

// exist reports whether there are other workers to which partitions may move.
func (p *peers) exist() bool {
	hosts, _ := p.control.Workers()
	for instance, w := range hosts.Workers {
		if instance != p.instance && !w.Replica {
			return !p.replica
		}
	}
	return false
}

// holder is another worker that answers for partitions.
type holder struct {
	instance, address string
	partitions        []int32
}

func (h *holder) String() string { return fmt.Sprintf("worker %s at %s", h.instance, h.address) }

// peerTimeout is how long another worker gets to begin an answer.
const peerTimeout = 5 * time.Second

// get sends a GET request to another worker and reads the answer. It fails if the other
// worker does not begin an answer in time, or if the status is not 200.
func (p *peers) get(ctx context.Context, address, path string, values url.Values, read func(io.Reader) error) error {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(asking, http.MethodGet, p.caller.URL(address, path)+"?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	late := time.AfterFunc(peerTimeout, cancel)
	resp, err := p.transport.RoundTrip(req)
	if err == nil {
		defer resp.Body.Close()
		if late.Stop() {
			err = dial.StatusError(resp)
		} else {
			err = context.Canceled
		}
		if err == nil {
			err = read(resp.Body)
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && asking.Err() != nil:
		return fmt.Errorf("no answer within %s", peerTimeout)
	}
	return err
}

// furthest returns one position per partition, the highest: a partition that moves may
// be with two workers.
func furthest(at []query.Position) []query.Position {
	slices.SortFunc(at, func(a, b query.Position) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(b.Offset, a.Offset))
	})
	return slices.CompactFunc(at, func(a, b query.Position) bool { return a.Partition == b.Partition })
}

func numbers(ns []int32) string {
	texts := make([]string, len(ns))
	for i, n := range ns {
		texts[i] = strconv.Itoa(int(n))
	}
	return strings.Join(texts, ", ")
}
