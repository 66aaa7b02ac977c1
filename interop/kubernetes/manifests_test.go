package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	sigsyaml "sigs.k8s.io/yaml"
)

const dir = "../../packaging/kubernetes"

// kinds are the objects that the manifests may hold, by version and kind.
func kinds() map[string]any {
	return map[string]any{
		"v1 Namespace":                       &corev1.Namespace{},
		"v1 ConfigMap":                       &corev1.ConfigMap{},
		"v1 PersistentVolumeClaim":           &corev1.PersistentVolumeClaim{},
		"v1 Service":                         &corev1.Service{},
		"apps/v1 StatefulSet":                &appsv1.StatefulSet{},
		"batch/v1 Job":                       &batchv1.Job{},
		"policy/v1 PodDisruptionBudget":      &policyv1.PodDisruptionBudget{},
		"networking.k8s.io/v1 NetworkPolicy": &networkingv1.NetworkPolicy{},
	}
}

// read decodes every document of every file strictly: an unknown or repeated
// key, or a value of the wrong type, fails.
func read(t *testing.T) map[string][]any {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%v %v", names, err)
	}
	out := map[string][]any{}
	for _, name := range names {
		if filepath.Base(name) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for docs := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text))); ; {
			buf := make([]byte, len(text)+1)
			n, err := docs.Read(buf)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var what metav1.TypeMeta
			if err := sigsyaml.Unmarshal(buf[:n], &what); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			kind := what.APIVersion + " " + what.Kind
			object := kinds()[kind]
			if object == nil {
				t.Fatalf("%s: unexpected %s", name, kind)
			}
			text, err := sigsyaml.YAMLToJSONStrict(buf[:n])
			if err != nil {
				t.Fatalf("%s: %s: %v", name, kind, err)
			}
			// The decoder of the API server, which minds upper and lower case.
			unknown, err := kjson.UnmarshalStrict(text, object)
			if err := errors.Join(append(unknown, err)...); err != nil {
				t.Errorf("%s: %s: %v", name, kind, err)
			}
			out[kind] = append(out[kind], object)
		}
	}
	return out
}

func TestManifests(t *testing.T) {
	objects := read(t)
	for kind, want := range map[string]int{
		"v1 Namespace": 1, "v1 ConfigMap": 2, "v1 PersistentVolumeClaim": 2, "v1 Service": 1, "apps/v1 StatefulSet": 1,
		"batch/v1 Job": 1, "policy/v1 PodDisruptionBudget": 1, "networking.k8s.io/v1 NetworkPolicy": 2,
	} {
		if len(objects[kind]) != want {
			t.Errorf("%d of %s, want %d", len(objects[kind]), kind, want)
		}
	}
	for kind, list := range objects {
		for _, o := range list {
			if m := o.(metav1.Object); kind != "v1 Namespace" && m.GetNamespace() != "gatebook" {
				t.Errorf("%s %s is in namespace %q", kind, m.GetName(), m.GetNamespace())
			}
		}
	}
}

// TestReferences demands that whatever one object names, another one is.
func TestReferences(t *testing.T) {
	objects := read(t)
	set := objects["apps/v1 StatefulSet"][0].(*appsv1.StatefulSet)
	job := objects["batch/v1 Job"][0].(*batchv1.Job)
	names := func(kind string) (out []string) {
		for _, o := range objects[kind] {
			out = append(out, o.(metav1.Object).GetName())
		}
		return out
	}
	for _, pod := range []corev1.PodSpec{set.Spec.Template.Spec, job.Spec.Template.Spec} {
		var volumes []string
		for _, v := range pod.Volumes {
			volumes = append(volumes, v.Name)
			if v.ConfigMap != nil && !slices.Contains(names("v1 ConfigMap"), v.ConfigMap.Name) {
				t.Errorf("volume %s: no ConfigMap %s", v.Name, v.ConfigMap.Name)
			}
			if c := v.PersistentVolumeClaim; c != nil && !slices.Contains(names("v1 PersistentVolumeClaim"), c.ClaimName) {
				t.Errorf("volume %s: no claim %s", v.Name, c.ClaimName)
			}
			if v.Secret != nil && *v.Secret.DefaultMode != 0o400 {
				t.Errorf("volume %s has mode %o", v.Name, *v.Secret.DefaultMode)
			}
		}
		for _, m := range pod.Containers[0].VolumeMounts {
			if !slices.Contains(volumes, m.Name) {
				t.Errorf("mount %s: no such volume", m.MountPath)
			}
		}
	}
	var ports []string
	for _, p := range set.Spec.Template.Spec.Containers[0].Ports {
		ports = append(ports, p.Name)
	}
	c := set.Spec.Template.Spec.Containers[0]
	service := objects["v1 Service"][0].(*corev1.Service)
	for _, port := range []string{
		service.Spec.Ports[0].TargetPort.StrVal, c.StartupProbe.HTTPGet.Port.StrVal, c.LivenessProbe.HTTPGet.Port.StrVal, c.ReadinessProbe.HTTPGet.Port.StrVal,
	} {
		if !slices.Contains(ports, port) {
			t.Errorf("no port %q among %v", port, ports)
		}
	}
	labels := fmt.Sprint(set.Spec.Template.Labels)
	budget := objects["policy/v1 PodDisruptionBudget"][0].(*policyv1.PodDisruptionBudget)
	for what, selector := range map[string]map[string]string{
		"the service": service.Spec.Selector, "the set": set.Spec.Selector.MatchLabels, "the budget": budget.Spec.Selector.MatchLabels,
	} {
		if fmt.Sprint(selector) != labels {
			t.Errorf("%s selects %v, pods have %v", what, selector, labels)
		}
	}
	// The pod that makes the book must never get traffic.
	if fmt.Sprint(job.Spec.Template.Labels) == labels {
		t.Error("the service would select the pod that makes the book")
	}
}

// TestRestricted holds pods to what the pod security standard "restricted"
// demands, and to more.
func TestRestricted(t *testing.T) {
	objects := read(t)
	for name, pod := range map[string]corev1.PodSpec{
		"StatefulSet": objects["apps/v1 StatefulSet"][0].(*appsv1.StatefulSet).Spec.Template.Spec,
		"Job":         objects["batch/v1 Job"][0].(*batchv1.Job).Spec.Template.Spec,
	} {
		p, c := pod.SecurityContext, pod.Containers[0].SecurityContext
		if p == nil || c == nil {
			t.Fatalf("%s: no security context", name)
		}
		for what, ok := range map[string]bool{
			"runs as nobody but a user":  *p.RunAsNonRoot && *p.RunAsUser == 65532 && *p.RunAsGroup == 65532,
			"filters system calls":       p.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
			"gains no privileges":        !*c.AllowPrivilegeEscalation,
			"has no capabilities":        slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) && len(c.Capabilities.Add) == 0,
			"has a read-only root":       *c.ReadOnlyRootFilesystem,
			"has no token":               !*pod.AutomountServiceAccountToken,
			"leaves the keys' mode":      *p.FSGroupChangePolicy == corev1.FSGroupChangeOnRootMismatch,
			"shares nothing of the host": !pod.HostNetwork && !pod.HostPID && !pod.HostIPC,
			"has one container":          len(pod.Containers) == 1 && len(pod.InitContainers) == 0,
			"has a memory limit":         !pod.Containers[0].Resources.Limits.Memory().IsZero(),
		} {
			if !ok {
				t.Errorf("%s: not true that it %s", name, what)
			}
		}
		for _, v := range pod.Volumes {
			if v.HostPath != nil {
				t.Errorf("%s: volume %s is of the host", name, v.Name)
			}
		}
	}
}
