# SPDX-License-Identifier: Apache-2.0
"""Claims about messages and arrays: on plain objects, and on real messages where ROS is installed."""

from __future__ import annotations

import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ros_vdd.errors import StreamError
from ros_vdd.streams import codecs
from ros_vdd.streams.image_codec import CHANNELS
from ros_vdd.streams.spec import ActionSpec, CameraSpec, JointStateSpec

COMPRESSED = "sensor_msgs/msg/CompressedImage"
RNG = np.random.default_rng(0)


def _camera(**changes) -> CameraSpec:
    return CameraSpec(**{"topic": "camera", "width": 7, "height": 5, "max_age_s": 0.25, **changes})


def _arm(**changes) -> JointStateSpec:
    return JointStateSpec(
        **{"topic": "joint_states", "joints": ("a", "b", "c"), "unit": "rad", "max_age_s": 0.25, **changes}
    )


def _action() -> ActionSpec:
    return ActionSpec(topic="cmd", joints=("a", "b"), unit="rad", lower=(-1, -1), upper=(1, 1), command_rate_hz=50.0)


def _image_msg(pixels: np.ndarray, layout: str, padding: int = 0, **changes) -> SimpleNamespace:
    """An Image of (H, W, channels) with random bytes in `padding` columns behind each row."""
    rows = pixels.reshape(pixels.shape[0], -1)
    rows = np.hstack([rows, RNG.integers(0, 256, (len(rows), padding), np.uint8)])
    fields = {"height": pixels.shape[0], "width": pixels.shape[1], "encoding": layout, "step": rows.shape[1]}
    return SimpleNamespace(**{**fields, "is_bigendian": 0, "data": rows.tobytes(), **changes})


def _oracle_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    order = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "mono8": [0, 0, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0]}
    return pixels[:, :, order[encoding]]


@pytest.mark.parametrize("padding", [0, 1, 13])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_every_encoding_and_row_padding_gives_the_same_rgb(encoding, padding):
    for _ in range(10):
        pixels = RNG.integers(0, 256, (5, 7, CHANNELS[encoding]), np.uint8)
        image = codecs.decode_image(_image_msg(pixels, encoding, padding), _camera(encoding=encoding))
        assert image.shape == (5, 7, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        np.testing.assert_array_equal(image, _oracle_rgb(pixels, encoding))


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, lambda b: array.array("B", b), lambda b: np.frombuffer(b, np.uint8)]
)
def test_live_and_bag_byte_containers_are_read_alike(kind):
    pixels = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    msg = _image_msg(pixels, "rgb8", padding=2)
    msg.data = kind(msg.data)
    np.testing.assert_array_equal(codecs.decode_image(msg, _camera()), pixels)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_encoded_image_decodes_to_itself(encoding):
    image, msg = RNG.integers(0, 256, (5, 7, 3), np.uint8), SimpleNamespace()
    codecs.encode_image(msg, image, encoding)
    np.testing.assert_array_equal(codecs.decode_image(msg, _camera(encoding=encoding)), image)


def test_sent_image_data_is_an_array_that_rclpy_takes_unchecked():
    msg = SimpleNamespace()
    codecs.encode_image(msg, np.zeros((5, 7, 3), np.uint8))
    assert isinstance(msg.data, array.array) and msg.data.typecode == "B" and len(msg.data) == 105


def test_reading_unpadded_rgb8_copies_nothing():
    msg = _image_msg(RNG.integers(0, 256, (5, 7, 3), np.uint8), "rgb8")
    assert np.shares_memory(codecs.decode_image(msg, _camera()), np.frombuffer(msg.data, np.uint8))


def test_crop_comes_before_resize():
    pixels = RNG.integers(0, 256, (40, 60, 3), np.uint8)
    spec = _camera(width=60, height=40, crop=(10, 4, 30, 20), resize=(15, 10))
    expected = pixels[4:24, 10:40].reshape(10, 2, 15, 2, 3).astype(float).mean((1, 3))  # bilinear at one half
    image = codecs.decode_image(_image_msg(pixels, "rgb8"), spec)
    assert image.shape == spec.output_shape
    np.testing.assert_allclose(image, expected, atol=0.5)  # rounding to whole values


def test_grey_camera_is_resized():
    pixels = RNG.integers(0, 256, (40, 60, 1), np.uint8)
    spec = _camera(width=60, height=40, encoding="mono8", resize=(30, 20))
    assert codecs.decode_image(_image_msg(pixels, "mono8"), spec).shape == (20, 30, 3)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"encoding": "bgr8"}, "encoding 'bgr8', the robot file says 'rgb8'"),
        ({"encoding": "16UC1"}, "encoding '16UC1'"),
        ({"width": 8}, "8x5 pixels, the robot file says 7x5"),
        ({"height": 2**32 - 1}, "x4294967295 pixels"),
        ({"step": 20}, "step 20; 7 pixels of rgb8 are 21"),
        ({"step": 2**32 - 1}, "step 4294967295"),
        ({"data": b"\0" * 104}, "cut off: 104 bytes; 5 rows of 21 bytes are 105"),
        ({"data": b""}, "cut off: 0 bytes"),
        ({"data": [0] * 105}, "no byte array"),
    ],
)
def test_wrong_image_is_refused_with_what_was_expected(changes, told):
    msg = _image_msg(np.zeros((5, 7, 3), np.uint8), "rgb8", **changes)
    with pytest.raises(StreamError, match=told):
        codecs.decode_image(msg, _camera())


def _compressed(kind: str, image_rgb: np.ndarray) -> bytes:
    return cv2.imencode(kind, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def _compressed_msg(data: bytes) -> SimpleNamespace:
    return SimpleNamespace(format="rgb8; jpeg compressed bgr8", data=data)


def test_png_is_decoded_without_loss():
    image = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    decoded = codecs.decode_image(_compressed_msg(_compressed(".png", image)), _camera(type=COMPRESSED))
    np.testing.assert_array_equal(decoded, image)


def test_a_png_of_16_bits_is_refused_and_never_halved():
    depth_mm = np.full((5, 7), 1500, np.uint16)  # OpenCV would make 5 of it
    with pytest.raises(StreamError, match="PNG has 16 bits a channel, as depth images have; expected the 8"):
        codecs.decode_image(_compressed_msg(cv2.imencode(".png", depth_mm)[1].tobytes()), _camera(type=COMPRESSED))


def test_jpeg_keeps_red_red():
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = 200
    data = _compressed(".jpg", image) + b"\0\0"  # some cameras pad
    decoded = codecs.decode_image(_compressed_msg(data), _camera(width=60, height=40, type=COMPRESSED))
    np.testing.assert_allclose(decoded, image, atol=4)  # JPEG's own loss on a flat colour


@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_every_cut_of_a_compressed_image_is_refused(kind):
    data = _compressed(kind, RNG.integers(0, 256, (40, 60, 3), np.uint8))
    spec = _camera(width=60, height=40, type=COMPRESSED)
    for length in [0, 1, 7, 12, 30, *range(40, len(data), 97), len(data) - 1]:
        with pytest.raises(StreamError):
            codecs.decode_image(_compressed_msg(data[:length]), spec)
    with pytest.raises(StreamError, match="cut off or damaged"):  # some OpenCV fill the rest with grey
        codecs.decode_image(_compressed_msg(data[:-500]), spec)


def _png_bomb() -> bytes:
    data = bytearray(_compressed(".png", np.zeros((5, 7, 3), np.uint8)))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


def _png_with_a_huge_chunk() -> bytes:
    data = bytearray(_compressed(".png", np.zeros((5, 7, 3), np.uint8)))
    data[33] = 174  # the highest byte of a length: OpenCV 4.14 takes ten seconds over these 2.9 GB
    return bytes(data)


@pytest.mark.parametrize(
    "data, told",
    [
        (_png_bomb(), "100000x100000 pixels, the robot file says 7x5"),
        (_compressed(".jpg", np.zeros((6, 7, 3), np.uint8)), "7x6 pixels, the robot file says 7x5"),
        (b"\0" * 12 + _compressed(".png", np.zeros((5, 7, 3), np.uint8)), "neither JPEG nor PNG"),
        (_png_with_a_huge_chunk(), "cut off or damaged"),
        (_compressed(".png", np.zeros((5, 7, 3), np.uint8)) + bytes(70_000), "one of 7x5 pixels has at most"),
        (b"GIF89a", "neither JPEG nor PNG"),
        (b"\xff\xd8" + b"\xff" * 60_000, "no frame header"),
    ],
    ids=["bomb", "size", "depth", "chunk", "bytes", "gif", "fill"],
)
def test_compressed_image_is_judged_by_its_bytes_before_decoding(data, told, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded before it was checked"))
    with pytest.raises(StreamError, match=told):
        codecs.decode_image(_compressed_msg(data), _camera(type=COMPRESSED))


def test_damaged_png_with_intact_ends_is_refused():
    data = bytearray(_compressed(".png", RNG.integers(0, 256, (5, 7, 3), np.uint8)))
    data[60:90] = bytes(30)
    with pytest.raises(StreamError, match="can't be decoded"):
        codecs.decode_image(_compressed_msg(bytes(data)), _camera(type=COMPRESSED))


def test_flipped_bytes_of_a_compressed_image_never_give_another_error_or_shape():
    spec = _camera(width=60, height=40, type=COMPRESSED)
    for kind in (".png", ".jpg"):
        intact = np.frombuffer(_compressed(kind, RNG.integers(0, 256, (40, 60, 3), np.uint8)), np.uint8)
        for _ in range(100):
            data = intact.copy()
            data[RNG.integers(0, min(len(data), 200), 3)] = RNG.integers(0, 256, 3)  # mostly headers and tables
            try:
                assert codecs.decode_image(_compressed_msg(data.tobytes()), spec).shape == spec.output_shape
            except StreamError:
                pass


def test_raw_image_on_a_compressed_topic_is_refused():
    with pytest.raises(StreamError, match="the robot file says sensor_msgs/msg/CompressedImage"):
        codecs.decode_image(_image_msg(np.zeros((5, 7, 3), np.uint8), "rgb8"), _camera(type=COMPRESSED))


def _joint_msg(names, position=(), velocity=(), effort=()) -> SimpleNamespace:
    return SimpleNamespace(name=list(names), position=list(position), velocity=list(velocity), effort=list(effort))


def test_joint_order_of_the_message_does_not_matter():
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "other": float("nan")}
    expected = {("a", "position"): 1.0, ("b", "position"): 2.0, ("c", "position"): 3.0}
    for _ in range(20):
        names = RNG.permutation(list(values))
        assert codecs.decode_joint_state(_joint_msg(names, [values[n] for n in names]), _arm()) == expected


def test_partial_publisher_gives_its_joints_and_fields_only():
    spec = _arm(fields=("position", "velocity"))
    assert codecs.decode_joint_state(_joint_msg(["b"], velocity=[4.0]), spec) == {("b", "velocity"): 4.0}
    assert codecs.decode_joint_state(_joint_msg(["gripper"], [1.0]), spec) == {}


@pytest.mark.parametrize(
    "msg, told",
    [
        (_joint_msg(["a", "b"], [1.0]), "1 values of position for 2 names"),
        (_joint_msg(["a", "b", "a"], [1.0, 2.0, 3.0]), "names a twice"),
        (_joint_msg([], [1.0]), "names no joints"),
        (_joint_msg(["a", "b"], [1.0, float("nan")]), "position of joint 'b' is nan"),
        (_joint_msg(["a"], [float("-inf")]), "position of joint 'a' is -inf"),
        (_joint_msg(["a"], [1e300]), "position of joint 'a' is 1e"),
    ],
)
def test_wrong_joint_state_is_refused(msg, told):
    with pytest.raises(StreamError, match=told):
        codecs.decode_joint_state(msg, _arm())


def _trajectory(names, *positions) -> SimpleNamespace:
    return SimpleNamespace(joint_names=list(names), points=[SimpleNamespace(positions=list(p)) for p in positions])


@pytest.mark.parametrize(
    "msg",
    [
        _trajectory(["b", "extra", "a"], [2.0, 9.0, 1.0]),
        _joint_msg(["extra", "b", "a"], [9.0, 2.0, 1.0]),
        SimpleNamespace(layout=None, data=[1.0, 2.0]),
    ],
    ids=["JointTrajectory", "JointState", "Float64MultiArray"],
)
def test_action_is_read_in_the_order_of_the_robot_file(msg):
    action = codecs.decode_action(msg, _action())
    assert action.dtype == np.float32
    np.testing.assert_array_equal(action, [1.0, 2.0])


@pytest.mark.parametrize(
    "msg, told",
    [
        (_trajectory(["a", "bb"], [1.0, 2.0]), "no joint 'b'; available: a, bb"),
        (_trajectory(["a", "b"], [1.0]), "1 positions for 2 joints"),
        (_trajectory(["a", "b"]), "0 points"),
        (_trajectory(["a", "b"], [0.0, 0.0], [1.0, 1.0]), "2 points; one action is one point"),
        (_trajectory(["a", "b"], [0.0, float("inf")]), "joint 'b' is inf"),
        (SimpleNamespace(data=[1.0, 2.0, 3.0]), "3 positions for 2 joints"),
        (SimpleNamespace(twist=None), "the robot file says trajectory_msgs/msg/JointTrajectory"),
    ],
)
def test_wrong_action_is_refused(msg, told):
    with pytest.raises(StreamError, match=told):
        codecs.decode_action(msg, _action())


def _empty_point() -> SimpleNamespace:
    return SimpleNamespace(positions=None, time_from_start=SimpleNamespace(sec=0, nanosec=0))


def test_chunk_is_written_whole_and_every_point_lies_in_the_future():
    actions, msg = RNG.normal(size=(16, 2)).astype(np.float32), SimpleNamespace()
    codecs.encode_trajectory(msg, [_empty_point() for _ in actions], ("a", "b"), actions, dt_ns=100_000_000)
    assert msg.joint_names == ["a", "b"]
    np.testing.assert_array_equal([p.positions for p in msg.points], actions)
    times = [p.time_from_start.sec * 10**9 + p.time_from_start.nanosec for p in msg.points]
    assert times == [(k + 1) * 100_000_000 for k in range(16)]


def test_a_trajectory_filled_again_has_the_new_actions_and_the_old_times():
    first, second = RNG.normal(size=(2, 16, 2)).astype(np.float32)
    again, fresh = SimpleNamespace(), SimpleNamespace()
    codecs.encode_trajectory(again, [_empty_point() for _ in first], ("a", "b"), first, dt_ns=100_000_000)
    codecs.refill_trajectory(again, second[:, ::-1])
    codecs.encode_trajectory(fresh, [_empty_point() for _ in second], ("a", "b"), second[:, ::-1], dt_ns=100_000_000)
    for one, other in zip(again.points, fresh.points, strict=True):
        assert list(one.positions) == other.positions and one.time_from_start == other.time_from_start


@pytest.mark.parametrize(
    "actions, told", [([[1.0, np.nan]], "nothing is sent"), ([[1.0]], r"\(1, 1\); expected \(1, 2\)"), (np.zeros((2, 2)), "expected")]
)
def test_a_trajectory_is_not_filled_again_with_what_doesnt_fit(actions, told):
    msg = SimpleNamespace()
    codecs.encode_trajectory(msg, [_empty_point()], ("a", "b"), np.array([[1.0, 2.0]]), dt_ns=1)
    with pytest.raises(StreamError, match=told):
        codecs.refill_trajectory(msg, np.array(actions))
    assert msg.points[0].positions == [1.0, 2.0]


def test_non_finite_chunk_leaves_the_message_as_it_was():
    msg = SimpleNamespace(joint_names=[], points=[])
    with pytest.raises(StreamError, match="nothing is sent"):
        codecs.encode_trajectory(msg, [_empty_point()], ("a", "b"), np.array([[1.0, np.nan]]), dt_ns=1)
    assert msg == SimpleNamespace(joint_names=[], points=[])


def _stamped(sec: int, nanosec: int) -> SimpleNamespace:
    return SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec)))


def test_stamp_is_exact_in_nanoseconds_and_zero_means_none():
    assert codecs.stamp_ns(_stamped(0, 0)) is None
    assert codecs.stamp_ns(SimpleNamespace(data=[])) is None
    exact = 1_700_000_000_123_456_789  # a float64 of seconds would lose the last digits
    assert codecs.stamp_ns(_stamped(1_700_000_000, 123_456_789)) == exact


@pytest.mark.parametrize("sec, nanosec", [(-1, 5), (1, 2_000_000_000)])
def test_impossible_stamp_is_refused(sec, nanosec):
    with pytest.raises(StreamError, match=f"stamp is {sec} s . {nanosec} ns"):
        codecs.stamp_ns(_stamped(sec, nanosec))


def test_real_messages_go_there_and_back():
    sensors = pytest.importorskip("sensor_msgs.msg", reason="no ROS messages installed")
    trajectories = pytest.importorskip("trajectory_msgs.msg", reason="no ROS messages installed")
    standard = pytest.importorskip("std_msgs.msg", reason="no ROS messages installed")
    image, picture = RNG.integers(0, 256, (5, 7, 3), np.uint8), sensors.Image()
    codecs.encode_image(picture, image)
    picture.header.stamp.sec, picture.header.stamp.nanosec = 1, 500_000_001
    np.testing.assert_array_equal(codecs.decode_image(picture, _camera()), image)
    assert codecs.stamp_ns(picture) == 1_500_000_001

    compressed = sensors.CompressedImage(format="png", data=array.array("B", _compressed(".png", image)))
    np.testing.assert_array_equal(codecs.decode_image(compressed, _camera(type=COMPRESSED)), image)

    action, chunk = np.array([[0.5, -0.25]], np.float32), trajectories.JointTrajectory()
    codecs.encode_trajectory(chunk, [trajectories.JointTrajectoryPoint()], ("a", "b"), action, dt_ns=20_000_000)
    joints, values = sensors.JointState(), standard.Float64MultiArray()
    codecs.encode_joint_state(joints, ("a", "b"), action[0])
    codecs.encode_array(values, action[0], size=2)
    for msg in (chunk, joints, values):
        np.testing.assert_array_equal(codecs.decode_action(msg, _action()), action[0])
    assert codecs.decode_joint_state(joints, _arm()) == {("a", "position"): 0.5, ("b", "position"): -0.25}


def test_bag_decoded_messages_read_like_live_ones():
    rosbags = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")
    store = rosbags.get_typestore(rosbags.Stores.ROS2_HUMBLE)
    types = store.types
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](3, 4), "")
    image = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    picture = types["sensor_msgs/msg/Image"](header, 5, 7, "rgb8", 0, 21, image.reshape(-1))
    empty = np.zeros(0)
    joints = types["sensor_msgs/msg/JointState"](header, ["b", "a"], np.array([2.0, 1.0]), empty, empty)

    def through_bytes(msg):
        return store.deserialize_cdr(store.serialize_cdr(msg, msg.__msgtype__), msg.__msgtype__)

    np.testing.assert_array_equal(codecs.decode_image(through_bytes(picture), _camera()), image)
    assert codecs.stamp_ns(through_bytes(picture)) == 3_000_000_004
    assert codecs.decode_joint_state(through_bytes(joints), _arm()) == {("a", "position"): 1.0, ("b", "position"): 2.0}
