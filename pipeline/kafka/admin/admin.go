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

	"millrace/pipeline/kafka"
)

// CommittedSum returns the sum of the group's committed offsets, 0 if it has none or does not
// exist.
func CommittedSum(ctx context.Context, cfg kafka.Config, group string) (sum int64, err error) {
	err = kafka.Administer(ctx, cfg, func(adm *kadm.Client) error {
		committed, err := adm.FetchOffsets(ctx, group)
		if errors.Is(err, kerr.GroupIDNotFound) {
			return nil
		}
		if err == nil {
			err = committed.Error()
		}
		if err != nil {
			return fmt.Errorf("reading the offsets of group %s: %w", group, err)
		}
		committed.Each(func(o kadm.OffsetResponse) { sum += max(0, o.At) })
		return nil
	})
	return sum, cfg.Explain(err)
}

// DeleteGroup deletes a group. It first removes static members, which do not leave
// the group when they stop; other members must have left. It returns nil if the group
// does not exist.
func DeleteGroup(ctx context.Context, cfg kafka.Config, group string) error {
	return cfg.Explain(kafka.Administer(ctx, cfg, func(adm *kadm.Client) error { return deleteGroup(ctx, adm, group) }))
}

func deleteGroup(ctx context.Context, adm *kadm.Client, group string) error {
	if err := removeStatic(ctx, adm, group, func(string) bool { return true }); err != nil {
		return err
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
func RemoveMembers(ctx context.Context, cfg kafka.Config, group, instance string) error {
	ours := func(id string) bool {
		session, ours := strings.CutPrefix(id, group+"-"+instance+"-")
		_, err := strconv.Atoi(session)
		return ours && err == nil
	}
	return cfg.Explain(kafka.Administer(ctx, cfg, func(adm *kadm.Client) error { return removeStatic(ctx, adm, group, ours) }))
}

// removeStatic removes the static members whose ids are chosen from a group.
func removeStatic(ctx context.Context, adm *kadm.Client, group string, chosen func(id string) bool) error {
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("describing group %s: %w", group, err)
	}
	var ids []string
	for _, m := range described[group].Members {
		if m.InstanceID != nil && chosen(*m.InstanceID) {
			ids = append(ids, *m.InstanceID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	leave := kadm.LeaveGroup(group)
	leave.InstanceIDs(ids...)
	left, err := adm.LeaveGroup(ctx, leave)
	if err == nil {
		err = left.Error()
	}
	if err != nil {
		return fmt.Errorf("removing the static members of group %s (%s): %w", group, strings.Join(ids, ", "), err)
	}
	return nil
}

// DeleteTopic deletes a topic. It returns nil if the topic does not exist.
func DeleteTopic(ctx context.Context, cfg kafka.Config, topic string) error {
	return cfg.Explain(kafka.Administer(ctx, cfg, func(adm *kadm.Client) error {
		out, err := adm.DeleteTopic(ctx, topic)
		if err == nil {
			err = out.Err
		}
		if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("deleting topic %s: %w", topic, err)
		}
		return nil
	}))
}
