package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Uses holds what a program does with topics: the names of the operations that it needs,
// READ and WRITE, by topic.
type Uses map[string][]string

// Add adds a topic and operations.
func (u Uses) Add(topic string, operations ...string) {
	for _, op := range operations {
		if !slices.Contains(u[topic], op) {
			u[topic] = append(u[topic], op)
		}
	}
}

// ErrNoTopic is in the chain of the reason of [Unusable] for a topic that does not exist.
var ErrNoTopic = errors.New("it does not exist; create it again with the same number of partitions")

// ErrUnusable is in the chain of the error with which [WatchUses] ends.
var ErrUnusable = errors.New("a topic cannot be used any more")

// Unusable returns why topics cannot be used, by name: they do not exist, or this user lacks
// a permission. A cluster need not report permissions; what it does not report is not lacking.
func Unusable(ctx context.Context, cfg Config, uses Uses) (why map[string]error, err error) {
	cfg.Registerer = nil // no metrics for such a short-lived client
	cl, err := openClient(cfg)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	why, err = unusable(ctx, cl, uses)
	return why, trimDial(err)
}

func unusable(ctx context.Context, cl *kgo.Client, uses Uses) (map[string]error, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.IncludeTopicAuthorizedOperations = true
	for name := range uses {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	why := map[string]error{}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		allowed, err := operations(kadm.DecodeACLOperations(t.AuthorizedOperations)), kerr.ErrorForCode(t.ErrorCode)
		lacking := allowed.Missing(uses[*t.Topic]...)
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			why[*t.Topic] = fmt.Errorf("topic %s: %w", *t.Topic, ErrNoTopic)
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			why[*t.Topic] = fmt.Errorf("topic %s: this user may not %s: grant it", *t.Topic, strings.Join(uses[*t.Topic], ", "))
		case err == nil && len(lacking) > 0:
			why[*t.Topic] = fmt.Errorf("topic %s: this user may not %s: grant it", *t.Topic, strings.Join(lacking, ", "))
		}
	}
	return why, nil
}

// A topic counts as unusable when unusableLooks looks in a row, usableEvery apart, have found
// it so: brokers that start may know less than they will soon.
const (
	usableEvery   = time.Second
	unusableLooks = 3
)

// WatchUses looks regularly whether topics can be used. It returns nil when the context ends,
// and an error with [ErrUnusable] when a topic cannot be used for longer than brokers need to
// start. While the topics cannot be described, it continues.
func WatchUses(ctx context.Context, cfg Config, uses Uses) error {
	cfg.Registerer = nil // no metrics for requests this rare
	cl, err := openClient(cfg)
	if err != nil {
		return err
	}
	defer cl.Close()
	return watchUses(ctx, cl, uses)
}

func watchUses(ctx context.Context, cl *kgo.Client, uses Uses) error {
	tick := time.NewTicker(usableEvery)
	defer tick.Stop()
	looks := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		why, err := unusable(ctx, cl, uses)
		if err != nil {
			continue
		}
		var faults []error
		for name := range uses {
			if why[name] == nil {
				looks[name] = 0
			} else if looks[name]++; looks[name] >= unusableLooks {
				faults = append(faults, fmt.Errorf("%w: %w", ErrUnusable, why[name]))
			}
		}
		slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		if err := errors.Join(faults...); err != nil {
			return err
		}
	}
}
