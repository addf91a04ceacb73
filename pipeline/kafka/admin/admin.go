// Package admin has requests of operators about groups and topics: each opens a client for
// one request. Its functions may be called from any goroutine.
package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/kafka"
)

// CommittedSum returns the sum of the group's committed offsets, 0 if it has none.
func CommittedSum(ctx context.Context, cfg kafka.Config, group string) (_ int64, err error) {
	defer func() { err = cfg.Explain(err) }()
	adm, err := client(cfg)
	if err != nil {
		return 0, err
	}
	defer adm.Close()
	committed, err := adm.FetchOffsets(ctx, group)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("reading the offsets of group %s: %w", group, err)
	}
	var sum int64
	committed.Each(func(o kadm.OffsetResponse) { sum += max(0, o.At) })
	return sum, nil
}

// DeleteGroup deletes a group. It first removes static members, which do not leave
// the group when they stop; other members must have left. It returns nil if the group
// does not exist.
func DeleteGroup(ctx context.Context, cfg kafka.Config, group string) (err error) {
	defer func() { err = cfg.Explain(err) }()
	adm, err := client(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("describing group %s: %w", group, err)
	}
	leave := kadm.LeaveGroup(group)
	static := 0
	for _, m := range described[group].Members {
		if m.InstanceID != nil {
			leave.InstanceIDs(*m.InstanceID)
			static++
		}
	}
	if static > 0 {
		if left, err := adm.LeaveGroup(ctx, leave); err != nil || left.Error() != nil {
			return fmt.Errorf("removing the static members of group %s: %w", group, errors.Join(err, left.Error()))
		}
	}
	out, err := adm.DeleteGroup(ctx, group)
	if err == nil {
		err = out.Err
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return fmt.Errorf("deleting group %s: %w", group, err)
	}
	return nil
}

// RemoveMembers removes the static members of an instance from a group, which would wait
// for them. The ids of static members are transactional ids: GROUP-INSTANCE-SESSION.
func RemoveMembers(ctx context.Context, cfg kafka.Config, group, instance string) (err error) {
	defer func() { err = cfg.Explain(err) }()
	adm, err := client(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("describing group %s: %w", group, err)
	}
	leave := kadm.LeaveGroup(group)
	found := false
	for _, m := range described[group].Members {
		if m.InstanceID == nil {
			continue
		}
		session, ours := strings.CutPrefix(*m.InstanceID, group+"-"+instance+"-")
		if _, err := strconv.Atoi(session); ours && err == nil {
			leave.InstanceIDs(*m.InstanceID)
			found = true
		}
	}
	if !found {
		return nil
	}
	left, err := adm.LeaveGroup(ctx, leave)
	if err == nil {
		err = left.Error()
	}
	if err != nil {
		return fmt.Errorf("removing the static members %s-%s from group %s: %w", group, instance, group, err)
	}
	return nil
}

// DeleteTopic deletes a topic. It returns nil if the topic does not exist.
func DeleteTopic(ctx context.Context, cfg kafka.Config, topic string) (err error) {
	defer func() { err = cfg.Explain(err) }()
	adm, err := client(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	out, err := adm.DeleteTopic(ctx, topic)
	if err == nil {
		err = out.Err
	}
	if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("deleting topic %s: %w", topic, err)
	}
	return nil
}

// client returns a client for admin requests. The caller closes it.
func client(cfg kafka.Config) (*kadm.Client, error) {
	opts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	return kadm.NewClient(cl), nil
}
