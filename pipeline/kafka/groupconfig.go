package kafka

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// groupSessionTimeout is the setting of a group for members of the consumer protocol
// (KIP-848), which send no session timeout themselves.
const groupSessionTimeout = "consumer.session.timeout.ms"

// setSessionTimeout sets the session timeout of a group of the consumer protocol. It needs
// DescribeConfigs and AlterConfigs on the group. Without them, or if the brokers do not
// allow the value, the brokers' timeout applies.
func (s *session) setSessionTimeout(ctx context.Context, cl *kgo.Client) {
	cfg := &s.loop.cfg
	if cfg.Protocol != ConsumerProtocol || s.number > 0 || s.timeoutSet { // one session is enough
		return
	}
	s.timeoutSet = true
	now, err := readSessionTimeout(ctx, cl, cfg.Group)
	if err == nil && now != cfg.SessionTimeout {
		err = alterSessionTimeout(ctx, cl, cfg.Group, cfg.SessionTimeout)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("cannot set the session timeout of the group, so the brokers' timeout applies: allow DescribeConfigs and AlterConfigs on the group, or see group.consumer.min.session.timeout.ms and group.consumer.max.session.timeout.ms of the brokers", "timeout", cfg.SessionTimeout.String(), "err", err)
	}
}

func readSessionTimeout(ctx context.Context, cl *kgo.Client, group string) (time.Duration, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ResourceName, r.ConfigNames = kmsg.ConfigResourceTypeGroupConfig, group, []string{groupSessionTimeout}
	req.Resources = append(req.Resources, r)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return 0, err
	}
	for _, r := range resp.Resources {
		if err := errorOf(r.ErrorCode, r.ErrorMessage); err != nil {
			return 0, err
		}
		for _, c := range r.Configs {
			if c.Name == groupSessionTimeout && c.Value != nil {
				ms, err := strconv.ParseInt(*c.Value, 10, 64)
				return time.Duration(ms) * time.Millisecond, err
			}
		}
	}
	return 0, nil
}

func alterSessionTimeout(ctx context.Context, cl *kgo.Client, group string, timeout time.Duration) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	c.Name, c.Value = groupSessionTimeout, kmsg.StringPtr(strconv.FormatInt(timeout.Milliseconds(), 10))
	r.ResourceType, r.ResourceName, r.Configs = kmsg.ConfigResourceTypeGroupConfig, group, append(r.Configs, c)
	req.Resources = append(req.Resources, r)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	for _, r := range resp.Resources {
		if err := errorOf(r.ErrorCode, r.ErrorMessage); err != nil {
			return err
		}
	}
	return nil
}

func errorOf(code int16, message *string) error {
	err := kerr.ErrorForCode(code)
	if err != nil && message != nil {
		return fmt.Errorf("%w: %s", err, *message)
	}
	return err
}
