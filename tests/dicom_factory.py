"""DICOM series with known content: valid MR, CT, PET and enhanced MR and PET, written with pydicom.

`series(...)` returns data sets that a test may damage; `save(...)` writes them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS, SLICES = 12, 10, 6
SPACING = (1.5, 1.25)  # between rows, between columns
STEP = 4.0
OBLIQUE = (0.96, 0.28, 0.0, -0.28 * 0.8, 0.96 * 0.8, 0.6)  # two perpendicular unit vectors, exact in decimals
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ORIGIN = (-40.0, -50.0, 30.0)

CLASSES = {
    **{"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2", "PT": "1.2.840.10008.5.1.4.1.1.128"},
    **{"enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1", "enhanced PT": "1.2.840.10008.5.1.4.1.1.130"},
}


def phantom(columns: int = COLUMNS, rows: int = ROWS, slices: int = SLICES) -> np.ndarray:
    """Smooth integers in 0..1000, shape (columns, rows, slices), different in each slice and after each flip."""
    x, y, z = np.meshgrid(np.arange(columns), np.arange(rows), np.arange(slices), indexing="ij")
    blob = np.exp(-((x - 0.4 * columns) ** 2 + (y - 0.6 * rows) ** 2) / (0.05 * columns * rows))
    return np.rint(700 * blob * (1 + 0.3 * z / slices) + 4 * x + 7 * y).astype(np.int32)


def positions(slices: int = SLICES, orientation: Sequence[float] = OBLIQUE, step: float = STEP) -> np.ndarray:
    """First-voxel centres (LPS, mm) of an even stack, shape (slices, 3)."""
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array(ORIGIN) + np.arange(slices)[:, None] * step * normal


def expected_affine(orientation: Sequence[float] = OBLIQUE, step: float = STEP) -> np.ndarray:
    """RAS affine of the stack for voxels (columns, rows, slices)."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    affine = np.eye(4)
    affine[:3] = np.stack([row * SPACING[1], column * SPACING[0], np.cross(row, column) * step, ORIGIN], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def numbers(values: Iterable[float]) -> list[str]:
    return [f"{value:.10g}" for value in values]


def series(
    modality: str = "MR",
    voxels: np.ndarray | None = None,
    orientation: Sequence[float] = OBLIQUE,
    step: float = STEP,
    seed: str = "a",
) -> list[Dataset]:
    """The classic instances of one series, in order of position; `voxels` are stored integers."""
    stored = phantom() if voxels is None else voxels
    study, uid, frame_of_reference = (generate_uid(entropy_srcs=[name, seed]) for name in ("study", "series", "for"))
    made = []
    for number, position in enumerate(positions(stored.shape[2], orientation, step)):
        dataset = _common(modality, study, uid, frame_of_reference)
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(number)])
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = numbers(position), numbers(orientation)
        dataset.PixelSpacing, dataset.SliceThickness = numbers(SPACING), "3.5"
        _ADD[modality](dataset, number, stored.shape[2])
        set_pixels(dataset, stored[:, :, number])
        made.append(dataset)
    return made


def set_pixels(dataset: Dataset, plane: np.ndarray, bits: int = 16, signed: bool | None = None) -> None:
    """Store integers (columns, rows); signed by default for CT and PET."""
    signed = dataset.Modality != "MR" if signed is None else signed
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape[1], plane.shape[0]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.add_new("PixelData", "OW", plane.T.astype("<i2" if signed else "<u2").tobytes())


def jpeg(instances: list[Dataset]) -> list[Dataset]:
    """Pixels as 8-bit JPEG, to be saved as JPEG Baseline."""
    for number, instance in enumerate(instances):
        stream = io.BytesIO()
        plane = np.minimum(phantom()[:, :, number], 1000) // 4
        Image.fromarray(plane.T.astype(np.uint8)).save(stream, "JPEG", quality=95)
        instance.BitsAllocated, instance.BitsStored, instance.HighBit = 8, 8, 7
        instance.add_new("PixelData", "OB", encapsulate([stream.getvalue()]))
    return instances


def save(datasets: Iterable[Dataset], folder: Path, syntax: str = ExplicitVRLittleEndian, suffix: str = ".dcm") -> Path:
    """Write data sets as files whose names do not reveal their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        number = len(list(folder.iterdir()))
        save_one(dataset, folder / f"{(number * 7 + 3) % 1000:03d}{suffix}", syntax)
    return folder


def save_one(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID or generate_uid(entropy_srcs=[path.name])
    if UID(syntax).is_encapsulated and dataset["PixelData"].VR == "OW":
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(UID(syntax), generate_instance_uid=False)
    elif not UID(syntax).is_little_endian:
        order = dataset["PixelData"].value
        dataset["PixelData"].value = np.frombuffer(order, "<u2").astype(">u2").tobytes()
    pydicom.dcmwrite(
        path,
        dataset,
        enforce_file_format=True,
        implicit_vr=UID(syntax).is_implicit_VR,
        little_endian=UID(syntax).is_little_endian,
    )
    return path


def enhanced(
    modality: str = "MR",
    voxels: np.ndarray | None = None,
    echoes: Sequence[float] = (20.0,),
    orientation: Sequence[float] = OBLIQUE,
    seed: str = "e",
) -> Dataset:
    """One multi-frame object; its frames run against the slice positions, echo by echo within each slice."""
    stored = phantom() if voxels is None else voxels
    uids = [generate_uid(entropy_srcs=[name, seed]) for name in ("study", "series", "for", "instance", "organization")]
    dataset = _common(f"enhanced {modality}", *uids[:3])
    dataset.SOPInstanceUID, dataset.InstanceNumber = uids[3], 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    _add_enhanced(dataset, modality, uids[4])
    places = positions(stored.shape[2], orientation)
    frames = [(at, echo) for at in reversed(range(len(places))) for echo in range(len(echoes))]
    dataset.NumberOfFrames = len(frames)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(modality, orientation)]
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame_groups(modality, places[at], (at + 1, echo + 1), echoes[echo]) for at, echo in frames
    ]
    set_pixels(dataset, stored[:, :, 0], signed=False)
    pixels = [(stored[:, :, at] // (echo + 1)).T.astype("<u2").tobytes() for at, echo in frames]
    dataset.add_new("PixelData", "OW", b"".join(pixels))
    return dataset


# ----------------------------------------------------------------------------------------------------- attributes


def _common(modality: str, study: str, uid: str, frame_of_reference: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = CLASSES[modality], modality.removeprefix("enhanced ")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, uid
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = frame_of_reference, ""
    dataset.PatientName, dataset.PatientID = "Secret^Name/../x", "SECRET-ID"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientWeight = "19500102", "O", "70"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260102", "101112", "17"
    dataset.SeriesDate, dataset.SeriesTime = "20260102", "101500"
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20260102", "101500"
    dataset.ContentDate, dataset.ContentTime = "20260102", "101501"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber, dataset.SeriesDescription = 5, "phantom"
    dataset.Manufacturer, dataset.ManufacturerModelName = "Phantom maker", "Model"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "1", "1.0"
    dataset.PatientPosition, dataset.ImageType = "HFS", ["ORIGINAL", "PRIMARY", "AXIAL"]
    return dataset


def _add_mr(dataset: Dataset, number: int, slices: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
    dataset.MRAcquisitionType, dataset.RepetitionTime, dataset.EchoTime = "2D", "2000", "20"
    dataset.EchoTrainLength, dataset.AcquisitionMatrix = 1, [ROWS, 0, 0, COLUMNS]
    dataset.InPlanePhaseEncodingDirection, dataset.WindowCenter, dataset.WindowWidth = "ROW", "400", "900"
    dataset.AcquisitionNumber, dataset.MagneticFieldStrength, dataset.FlipAngle = 1, "3", "90"
    dataset.BodyPartExamined = "BRAIN"


def _add_ct(dataset: Dataset, number: int, slices: int) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
    dataset.KVP, dataset.AcquisitionNumber, dataset.WindowCenter, dataset.WindowWidth = "120", 1, "40", "400"
    dataset.BodyPartExamined = "HEAD"


def _add_pt(dataset: Dataset, number: int, slices: int) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.5 + 0.11 * number:.2f}", "0"
    dataset.SeriesType, dataset.Units, dataset.CountsSource = ["STATIC", "IMAGE"], "BQML", "EMISSION"
    dataset.NumberOfSlices, dataset.ImageIndex = slices, number + 1
    dataset.CorrectedImage, dataset.DecayCorrection = ["DECY", "ATTN"], "START"
    dataset.RandomsCorrectionMethod, dataset.AttenuationCorrectionMethod = "DLYD", "CT"
    dataset.CollimatorType, dataset.BodyPartExamined = "NONE", "HEAD"
    del dataset.PatientPosition
    dataset.FrameReferenceTime, dataset.ActualFrameDuration, dataset.DecayFactor = "300000", "600000", "1.03"
    dataset.WindowCenter, dataset.WindowWidth = "400", "900"
    dose = Dataset()
    dose.RadionuclideTotalDose, dose.RadionuclideHalfLife = "350000000", "6586.2"
    dose.RadiopharmaceuticalStartTime, dose.Radiopharmaceutical = "091500", "FDG"
    dose.RadionuclidePositronFraction = "0.97"
    dose.RadionuclideCodeSequence = [code("77004003", "SCT", "^18^Fluorine")]
    dataset.RadiopharmaceuticalInformationSequence = [dose]
    dataset.PatientOrientationCodeSequence = [code("102538003", "SCT", "recumbent")]
    dataset.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = [
        code("40199007", "SCT", "supine")
    ]
    dataset.PatientGantryRelationshipCodeSequence = [code("102540008", "SCT", "headfirst")]


_ADD = {"MR": _add_mr, "CT": _add_ct, "PT": _add_pt}


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _item(**attributes: Any) -> list[Dataset]:
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return [item]


def _add_enhanced(dataset: Dataset, modality: str, organization: str) -> None:
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.VolumeBasedCalculationTechnique, dataset.PresentationLUTShape = "NONE", "IDENTITY"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.ContentQualification = "RESEARCH"
    dataset.AcquisitionDateTime, dataset.AcquisitionDuration = "20260102101500", 100.0
    dataset.AcquisitionNumber = 1
    dataset.AcquisitionContextSequence = []
    dataset.DimensionOrganizationSequence = _item(DimensionOrganizationUID=organization)
    in_stack = _item(DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111)[0]
    echo = _item(DimensionIndexPointer=0x00189082, FunctionalGroupPointer=0x00189114)[0]
    for pointer in (in_stack, echo):
        pointer.DimensionOrganizationUID = organization
    dataset.DimensionIndexSequence = [in_stack, echo] if modality == "MR" else [in_stack]
    dataset.BodyPartExamined = "BRAIN"
    del dataset.AcquisitionDate, dataset.AcquisitionTime
    if modality == "MR":
        _add_enhanced_mr(dataset)
    else:
        _add_enhanced_pt(dataset)


def _set(dataset: Dataset, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(dataset, name, value)


def _add_enhanced_mr(dataset: Dataset) -> None:
    _set(dataset, ComplexImageComponent="MAGNITUDE", AcquisitionContrast="T2", ResonantNucleus="1H")
    _set(dataset, KSpaceFiltering="NONE", MagneticFieldStrength=3.0, ApplicableSafetyStandardAgency="IEC")
    _set(dataset, PulseSequenceName="se", MRAcquisitionType="2D", EchoPulseSequence="SPIN", MultipleSpinEcho="NO")
    _set(dataset, MultiPlanarExcitation="NO", PhaseContrast="NO", TimeOfFlightContrast="NO")
    _set(dataset, SteadyStatePulseSequence="NONE", EchoPlanarPulseSequence="NO", SaturationRecovery="NO")
    _set(dataset, SpectrallySelectedSuppression="NONE", OversamplingPhase="NONE", NumberOfKSpaceTrajectories=1)
    _set(dataset, GeometryOfKSpaceTraversal="RECTILINEAR", SegmentedKSpaceTraversal="SINGLE")
    _set(dataset, RectilinearPhaseEncodeReordering="LINEAR")


def _add_enhanced_pt(dataset: Dataset) -> None:
    _set(dataset, AcquisitionStartCondition="MANU", AcquisitionTerminationCondition="TIME", TableMotion="STATIC")
    _set(
        dataset,
        TypeOfDetectorMotion="STATIONARY",
        DetectorGeometry="CYLINDRICAL_RING",
        CollimatorType="NONE",
        TimeOfFlightInformationUsed="FALSE",
    )
    _set(dataset, TransverseDetectorSeparation=1.0, AxialDetectorDimension=1.0, CoincidenceWindowWidth=4.0)
    _set(dataset, TerminationTimeThreshold=600.0, CountsSource="EMISSION")
    dataset.EnergyWindowRangeSequence = _item(EnergyWindowLowerLimit="435", EnergyWindowUpperLimit="650")
    for name in ("Decay", "Attenuation", "Scatter", "DeadTime", "GantryMotion", "PatientMotion"):
        setattr(dataset, f"{name}Corrected", "NO")
    for name in ("CountLossNormalization", "Randoms", "NonUniformRadialSampling"):
        setattr(dataset, f"{name}Corrected", "NO")
    _set(dataset, SensitivityCalibrated="NO", DetectorNormalizationCorrection="NO")
    _set(dataset, ViewCodeSequence=[code("62824007", "SCT", "Transverse")])
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dataset.SliceProgressionDirection = "CRANIAL_CAUDAL"
    dose = Dataset()
    _set(dose, RadiopharmaceuticalAgentNumber=1, RadionuclideTotalDose="350000000", RadionuclideHalfLife="6586.2")
    _set(dose, RadiopharmaceuticalStartDateTime="20260102091500", RadionuclidePositronFraction="0.97")
    _set(dose, AdministrationRouteCodeSequence=[code("47625008", "SCT", "Intravenous route")])
    _set(dose, RadionuclideCodeSequence=[code("77004003", "SCT", "^18^Fluorine")])
    _set(dose, RadiopharmaceuticalCodeSequence=[code("35321007", "SCT", "Fluorodeoxyglucose F^18^")])
    dataset.RadiopharmaceuticalInformationSequence = [dose]


def _shared_pt(shared: Dataset) -> None:
    frame_type = {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "PixelPresentation": "MONOCHROME"}
    frame_type |= {"VolumetricProperties": "VOLUME", "VolumeBasedCalculationTechnique": "NONE"}
    shared.PETFrameTypeSequence = _item(**frame_type)
    shared.RadiopharmaceuticalUsageSequence = _item(RadiopharmaceuticalAgentNumber=1)
    shared.PETFrameAcquisitionSequence = _item(
        TableHeight="100", GantryDetectorTilt="0", GantryDetectorSlew="0", DataCollectionDiameter="500"
    )
    shared.PETDetectorMotionDetailsSequence = _item(RotationDirection="CW", RevolutionTime=1.0)
    shared.PETPositionSequence = _item(
        TablePosition=0.0,
        DataCollectionCenterPatient=[0.0, 0.0, 0.0],
        ReconstructionTargetCenterPatient=[0.0, 0.0, 0.0],
    )
    shared.PETFrameCorrectionFactorsSequence = _item(
        PrimaryPromptsCountsAccumulated=1, SliceSensitivityFactor="1", ScatterFractionFactor="0.1", DeadTimeFactor="1"
    )
    shared.PETReconstructionSequence = _item(
        ReconstructionType="3D",
        ReconstructionAlgorithm="FILTER_BACK_PROJ",
        IterativeReconstructionMethod="NO",
        ReconstructionFieldOfView=[200.0, 200.0],
    )


def _shared_mr(shared: Dataset) -> None:
    frame_type = {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "PixelPresentation": "MONOCHROME"}
    frame_type |= {"VolumetricProperties": "VOLUME", "VolumeBasedCalculationTechnique": "NONE"}
    frame_type |= {"ComplexImageComponent": "MAGNITUDE", "AcquisitionContrast": "T2"}
    shared.MRImageFrameTypeSequence = _item(**frame_type)
    absorption = _item(SpecificAbsorptionRateDefinition="IEC_WHOLE_BODY", SpecificAbsorptionRateValue=0.5)
    gradient = _item(OperatingModeType="GRADIENT", OperatingMode="IEC_NORMAL")
    shared.MRTimingAndRelatedParametersSequence = _item(
        RepetitionTime="2000",
        FlipAngle="90",
        EchoTrainLength=1,
        RFEchoTrainLength=1,
        GradientEchoTrainLength=0,
        SpecificAbsorptionRateSequence=absorption,
        GradientOutputType="DB_DT",
        GradientOutput=10.0,
        OperatingModeSequence=gradient,
    )
    shared.MRFOVGeometrySequence = _item(
        InPlanePhaseEncodingDirection="ROW",
        MRAcquisitionFrequencyEncodingSteps=ROWS,
        MRAcquisitionPhaseEncodingStepsInPlane=COLUMNS,
        PercentSampling="100",
        PercentPhaseFieldOfView="100",
    )
    shared.MRModifierSequence = _item(
        InversionRecovery="NO",
        FlowCompensation="NONE",
        Spoiling="NONE",
        T2Preparation="NO",
        SpectrallySelectedExcitation="NONE",
        SpatialPresaturation="NONE",
        PartialFourier="NO",
        ParallelAcquisition="NO",
    )
    shared.MRImagingModifierSequence = _item(
        MagnetizationTransfer="NONE", BloodSignalNulling="NO", Tagging="NONE", TransmitterFrequency=123.2
    )
    shared.MRImagingModifierSequence[0].PixelBandwidth = "200"
    shared.MRReceiveCoilSequence = _item(
        ReceiveCoilName="head",
        ReceiveCoilManufacturerName="",
        ReceiveCoilType="VOLUME",
        QuadratureReceiveCoil="YES",
    )
    shared.MRTransmitCoilSequence = _item(
        TransmitCoilName="body", TransmitCoilManufacturerName="", TransmitCoilType="BODY"
    )
    shared.MRAveragesSequence = _item(NumberOfAverages="1")


def _shared_groups(modality: str, orientation: Sequence[float]) -> Dataset:
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(
        PixelSpacing=numbers(SPACING), SliceThickness="3.5", SpacingBetweenSlices=f"{STEP:g}"
    )
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=numbers(orientation))
    shared.FrameAnatomySequence = _item(FrameLaterality="U", AnatomicRegionSequence=[code("12738006", "SCT", "Brain")])
    shared.PixelValueTransformationSequence = _item(RescaleIntercept="0", RescaleSlope="0.5", RescaleType="US")
    (_shared_mr if modality == "MR" else _shared_pt)(shared)
    shared.FrameVOILUTSequence = _item(WindowCenter="400", WindowWidth="900")
    return shared


def _frame_groups(modality: str, position: np.ndarray, indices: tuple[int, int], echo: float) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = _item(ImagePositionPatient=numbers(position))
    group.FrameContentSequence = _item(
        StackID="1",
        InStackPositionNumber=indices[0],
        DimensionIndexValues=list(indices if modality == "MR" else indices[:1]),
        FrameAcquisitionNumber=1,
        FrameReferenceDateTime="20260102101500",
        FrameAcquisitionDateTime="20260102101500",
        FrameAcquisitionDuration=100.0,
    )
    if modality == "PT":
        group.FrameContentSequence[0].TemporalPositionIndex = 1
    if modality == "MR":
        group.MREchoSequence = _item(EffectiveEchoTime=echo)
    return group


# ------------------------------------------------------------------------------------------ several volumes in a series


def volumes(
    count: int, places: int, tell: Callable[[int, int], dict[Any, Any]], seed: str = "v", **common: Any
) -> list[Dataset]:
    """Classic MR slices of several volumes in one series, volume by volume; InstanceNumber and times are constant.

    Args:
        count: volumes.
        places: slices of each.
        tell: attributes of a slice, by volume and place, both from 0.
        seed: of the UIDs.
        common: attributes of all slices.
    """
    made = []
    for volume in range(count):
        for place, instance in enumerate(series(voxels=volume_pixels(volume, places), orientation=AXIAL, seed=seed)):
            instance.SOPInstanceUID = generate_uid(entropy_srcs=[seed, str(volume), str(place)])
            instance.InstanceNumber = 1
            set_attributes(instance, {**common, **tell(volume, place)})
            made.append(instance)
    return made


def volume_pixels(volume: int, places: int) -> np.ndarray:
    """Stored integers (columns, rows, slices) of a volume, different in each."""
    return phantom(6, 8, places) + 100 * volume


def set_attributes(instance: Dataset, attributes: dict[Any, Any]) -> Dataset:
    """Set attributes by keyword, or by (group, element, VR) those of private blocks; None deletes."""
    for name, value in attributes.items():
        if isinstance(name, tuple):
            group, element, vr = name
            instance.add_new((group, element), vr, value)
        elif value is None:
            if name in instance:
                delattr(instance, name)
        else:
            setattr(instance, name, value)
    return instance


def enhanced_volumes(
    count: int, places: int, tell: Callable[[int, int], dict[Any, Any]], pointers: Sequence[int], shared: bool = True
) -> Dataset:
    """One enhanced MR object with several volumes, volume by volume.

    Args:
        count, places: as for `volumes`.
        tell: attributes of the FrameContentSequence of a frame; DimensionIndexValues is complete.
        pointers: DimensionIndexPointer of each column.
        shared: whether the shared groups are shared, or repeated in each frame.
    """
    dataset = enhanced(voxels=phantom(6, 8, 1), orientation=AXIAL)
    template = dataset.PerFrameFunctionalGroupsSequence[0]
    dataset.DimensionIndexSequence = [
        _item(DimensionIndexPointer=pointer, DimensionOrganizationUID="2.25.1")[0] for pointer in pointers
    ]
    groups, pixels = [], []
    for volume in range(count):
        for place, position in enumerate(positions(places, AXIAL)):
            group = deepcopy(template)
            group.PlanePositionSequence[0].ImagePositionPatient = numbers(position)
            set_attributes(group.FrameContentSequence[0], {"InStackPositionNumber": place + 1, **tell(volume, place)})
            if not shared:
                group.update(deepcopy(dataset.SharedFunctionalGroupsSequence[0]))
            groups.append(group)
            pixels.append(volume_pixels(volume, places)[:, :, place].T.astype("<u2").tobytes())
    if not shared:
        dataset.SharedFunctionalGroupsSequence = []
    dataset.NumberOfFrames, dataset.PerFrameFunctionalGroupsSequence = len(groups), groups
    dataset.add_new("PixelData", "OW", b"".join(pixels))
    return dataset
